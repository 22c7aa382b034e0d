"""What the four corpus commands at the root share. Read in this order:

files.py             files as what they are: packed or not, with a byte order mark or without
texts.py             where texts come from (the prose that Python carries, files, datasets of the
                     hub), as streams, and the documents that cascades are trained on
byte_rows.py         text -> rows of byte ids
shards.py            writing a large corpus in shards, and continuing after an interruption
figures.py           figures and a summary of a prepared byte corpus
pydoc_questions.py   questions about Python's standard library, with their answers
importance.py        how important the words of a text are: by tag, by closeness to the document
documents.py         what preprocess_prefix.py writes: documents whose tokens have an importance
workers.py           processes that work on numbered texts, watched
"""
