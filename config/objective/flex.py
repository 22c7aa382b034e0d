# FlexMDM: masks are inserted, then unmasked.
#
#   python train.py config/star_tiny.py config/objective/flex.py
objective = "flex"
time_input = True
