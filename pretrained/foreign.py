"""Arguments of the projects that this one replaces, and what to write here instead.

docs/coming-from.md has the same for whole commands. A key is an argument of theirs: `data.train`
in its group, `n_iters` in any group, or `model=medium` with its value; {} stands for the value.
configurator.py asks where it would otherwise refuse an argument as unknown.
"""

TRAIN = "python train.py "
SAMPLE = "python sample.py "
EVALUATE = "python evaluate.py "

# star graphs and objectives, by their names there
STARS = {
    **{"star_small": "star_easy", "vstar_small": "star_medium", "vstar_medium": "star_hard"},
    **{"star_easy": "star_easy", "star_medium": "star_medium", "star_hard": "star_hard"},
}
OBJECTIVES = {
    "ilm": "config/objective/ilm.py",
    "idlm": "config/published/idlm.py",
    "it": "config/published/it.py",
    "it_stochastic": "config/published/it.py",
    "arlm": "config/published/ar.py",
    "mdlm": "config/published/mdlm.py",
    "mlm": "config/objective/mlm.py",
    "xlnet": "config/objective/xlnet.py",
}
ZEBRA = "config/star_easy.py {} --dataset=zebra --block_size=460"  # tasks.stars makes it
COUNTDOWN = "config/star_easy.py config/objective/ilm.py --dataset=countdown --block_size=80"

# ILM, IDLM, Insertion Transformer, XLNet: experiments
EXPERIMENTS = {
    **{f"{o}_{s}": f"config/{STARS[s]}.py {OBJECTIVES[o]}" for s in STARS for o in OBJECTIVES},
    **{f"{s}_{o}": f"config/{STARS[s]}.py {OBJECTIVES[o]}" for s in STARS for o in OBJECTIVES},
    **{
        f"ilm_{size}_{s}": f"config/{STARS[s]}.py config/objective/ilm.py config/size/{size}.py"
        for s in STARS
        for size in ("tiny", "tiny2", "xtiny2")
    },
    "arlm_vstar_medium": "config/ar_star_hard.py",
    "star_hard_arlm": "config/ar_star_hard.py",
    "star_hard_idlm": "config/idlm_star_hard.py",
    "mlm_star": "config/star_easy.py config/objective/mlm.py",
    "idlm_vstar_medium": "config/idlm_vstar_medium_poisson.py --sigma_max=23 --max_iters=80000",
    "idlm_vstar_medium_poisson": "config/idlm_vstar_medium_poisson.py",
    "idlm_vstar_medium_diffusion_weights": "config/idlm_vstar_medium_poisson.py --sigma_max=23 "
    "--length_loss_weight=0.01 --max_iters=100000",
    "idlm_vstar_medium_diffusion_weights_geometric": "config/idlm_vstar_medium_geometric.py",
    "idlm_vstar_medium_diffusion_weights_loglinear": (
        "config/idlm_vstar_medium_diffusion_weights_loglinear.py"
    ),
    "ilm_zebra": ZEBRA.format("config/objective/ilm.py"),
    "ilm_tiny_zebra": ZEBRA.format("config/objective/ilm.py config/size/tiny.py"),
    "ilm_tiny2_zebra": ZEBRA.format("config/objective/ilm.py config/size/tiny2.py"),
    "mdlm_zebra": ZEBRA.format("config/published/mdlm.py"),
    "arlm_zebra": ZEBRA.format("config/published/ar.py"),
    **{f"ilm_countdown_{n}": COUNTDOWN for n in (3, 4, 5)},
    "ilm_grammar": "config/ilm_grammar.py",
    "idlm_grammar": "config/idlm_grammar.py",
    "ilm_lm1b": "config/ilm_lm1b.py",
    "lm1b_ilm": "config/ilm_lm1b.py",
    "mdlm_lm1b": "config/ilm_lm1b.py config/objective/mdlm.py",
    "lm1b_mlm": "config/ilm_lm1b.py config/objective/mlm.py",
    "arlm_lm1b": "config/ilm_lm1b.py config/objective/ar.py",
    "idlm_lm1b": "config/idlm_lm1b.py",
    "lm1b_idlm": "config/idlm_lm1b.py",
    "idlm_lm1b_v4": "config/idlm_lm1b_v4.py",
    "idlm_lm1b_diffusion_geometric": "config/idlm_lm1b_diffusion_geometric.py",
    "ilm_stories": "config/ilm_stories.py",
    "mdlm_stories": "config/ilm_stories.py config/objective/mdlm.py",
    "arlm_stories": "config/ilm_stories.py config/objective/ar.py",
    "ilm_lm1b_finetune_stories": "config/ilm_stories.py --init_from=out/ilm_lm1b",
    "mdlm_lm1b_finetune_stories": "config/ilm_stories.py config/objective/mdlm.py "
    "--init_from=out/mdlm_ilm_lm1b",
    "idlm_stories": "config/idlm_stories.py",
    "idlm_stories_v3": "config/idlm_stories_v3.py",
    "idlm_stories_v4": "config/idlm_stories_loglinear.py",
    "idlm_stories_diffusion_loglinear": "config/idlm_stories_loglinear.py --ce_weight=1 "
    "--length_loss_weight=1 --max_iters=100000",
    "idlm_stories_diffusion_geometric": "config/idlm_stories_diffusion_geometric.py",
    "ilm_owt": "config/ilm_owt.py",
    "owt_ilm": "config/ilm_owt.py",
    "owt_idlm": "config/idlm_owt.py",
    "owt_mdlm": "config/mdlm_owt.py",
    "owt_mlm": "config/ilm_owt.py config/objective/mlm.py",
    "ilm_lm1b_generate": SAMPLE + "config/generate/p02.py --ckpt=out/ilm_lm1b",
    "ilm_stories_generate": SAMPLE + "config/generate/p02.py --ckpt=out/ilm_stories",
    "ilm_owt_generate": SAMPLE + "config/generate/p02.py --ckpt=out/ilm_owt",
    "ilm_lm1b_generate_timed": SAMPLE + "config/generate/p02.py --ckpt=out/ilm_lm1b",
    "ilm_stories_generate_timed": SAMPLE + "config/generate/p02.py --ckpt=out/ilm_stories",
    "idlm_lm1b_generate": SAMPLE + "config/generate/idlm_p02.py --ckpt=out/idlm_lm1b",
    "idlm_stories_generate": SAMPLE + "config/generate/idlm_p05.py --ckpt=out/idlm_stories",
    "mdlm_stories_generate": SAMPLE + "--ckpt=out/mdlm_ilm_stories",
    "arlm_stories_generate": SAMPLE + "--ckpt=out/ar_ilm_stories",
    "ilm_lm1b_infill": SAMPLE + "--ckpt=out/ilm_lm1b --infill='TEXT[*]TEXT'",
    "ilm_stories_infill": SAMPLE + "--ckpt=out/ilm_stories --infill='TEXT[*]TEXT'",
    "lm1b_generative_perplexity": EVALUATE + "--ckpt=out/ilm_lm1b --judge=gpt2-large",
    "stories_generative_perplexity": EVALUATE + "--ckpt=out/ilm_stories --judge=gpt2-large",
    "gpt2_generative_perplexity": EVALUATE + "--ckpt=FOLDER --judge=gpt2",
}

# stages of a cascade: the learning rate and the lengths are in their names
STAGES = {f"stage{n}": f"config/stage{n}.py" for n in (1, 2, 3)}
STAGES |= {
    f"stage{n}{dash}lr{rate}-{lengths}": f"config/stage{n}{short}.py --learning_rate={rate}"
    for n in (1, 2, 3)
    for dash in "-_"
    for rate in ("3e-4", "5e-4", "0.75e-4", "1e-3")
    for lengths, short in (("32_64_128", ""), ("16_32_128", "_16"))
}

# for train.py
TO_TRAIN = {
    **{f"experiment={name}": text for name, text in EXPERIMENTS.items()},
    **{f"stage={name}": text for name, text in STAGES.items()},
    **{f"dataset={name}": f"config/{ours}.py" for name, ours in STARS.items()},
    **{f"dataset={name}_v2": f"config/{ours}.py" for name, ours in STARS.items()},
    "debug=overfit": "--debug=overfit",
    "debug=overfit_star": "--debug=overfit",
    "debug=overfit_lm1b": "--debug=overfit",
    "debug=overfit_stories": "--debug=overfit",
    "debug=debug_multinode": "--debug=multinode",
    # SEDD, its fork for bytes, and the cascade
    "ngpus": "torchrun --standalone --nproc_per_node={} train.py",
    "model=small": "config/sedd_small.py",
    "model=medium": "config/sedd_small.py --n_embd=1024 --n_layer=24 --n_head=16",
    "model=small_shuffle": "config/stage1_shuffle.py, stage2_shuffle.py or stage3_shuffle.py",
    "n_iters": "--max_iters={}",
    "accum": "--gradient_accumulation_steps={}",
    "snapshot_freq": "--snapshot_interval={}",
    "snapshot_freq_for_preemption": "--eval_interval={}",
    "snapshot_sampling": "--sample_interval=STEPS",
    "log_freq": "--log_interval={}",
    "eval_freq": "--eval_interval={}",
    "ema": "--ema_decay={}",
    "data.train": "--dataset={}",
    "data.valid": "`python -m cascade.stages --val_source=` of {}",
    "data.cache_dir": "--data_dir={}",
    "noise_lib": "--noise={}",
    "graph_lib": "--graph={}",
    "sampling.predictor": SAMPLE + "--sampler={}",
    "sampling.steps": SAMPLE + "--steps={}",
    "eval.batch_size": "--eval_iters=BATCHES",
    "eval.perplexity": EVALUATE + "--judge=gpt2-large",
    "eval.perplexity_batch_size": EVALUATE + "--judge=gpt2-large --batch_size={}",
    "use_muon": "--optimizer=muon",
    "adamw_lr": "--learning_rate={}",
    "lr": "--learning_rate={}",
    "warmup": "--warmup_iters={}",
    "hidden_size": "--n_embd={}",
    "n_blocks": "--n_layer={}",
    "n_heads": "--n_head={}",
    "length": "--block_size={}",
    "use_wandb": "--wandb_log={}",
    "wandb_name": "--wandb_run_name={}",
    "pretrain_checkpoint": "--init_from={}",
    "use_pretrained": "--init_from=louaaron/sedd-small",
    "model_path": "--init_from={}",
    "load_dir": "--init_from=resume --out_dir={}",
    "dataloader": "`python -m cascade.stages --source=data/preprocessed/{}/openwebtext`",
    "stage1_root_dir": SAMPLE + "--cascade={},STAGE2,STAGE3",
    "stage2_root_dir": SAMPLE + "--cascade=STAGE1,{},STAGE3",
    # causal models of code changes: the arguments of the Trainer of transformers
    "model_name_or_path": "--init_from={}",
    "config_name": "--backbone={}",
    "tokenizer_name": "`python -m patches.prepare --tokenizer={}`",
    "dataset_name": "`python -m patches.prepare --source={}`",
    "train_file": "`python -m patches.prepare --source={}`",
    "train_diff_model": "`python -m patches.prepare --train_diff_model={}`",
    "concatenate_texts": "`python -m patches.prepare --concatenate_texts={}`",
    "ignore_long_samples": "`python -m patches.prepare --ignore_long_samples={}`",
    "per_device_train_batch_size": "--batch_size={}",
    "per_device_eval_batch_size": "--eval_iters=BATCHES",
    "num_train_epochs": "--max_iters=STEPS",
    "warmup_steps": "--warmup_iters={}",
    "adam_beta1": "--beta1={}",
    "adam_beta2": "--beta2={}",
    "output_dir": "--out_dir={}",
    "overwrite_output_dir": "--overwrite",
    "resume_from_checkpoint": "--init_from=resume --out_dir={}",
    "save_steps": "--eval_interval={}",
    "eval_steps": "--eval_interval={}",
    "report_to": "--wandb_log",
    "run_name": "--wandb_run_name={}",
    "bf16": "--dtype=bfloat16",
    "deepspeed": "--parallel=fsdp",
    # ILM and its family
    "job_name": "--out_dir=out/{}",
    "model_type=ilm": "config/objective/ilm.py",
    "model_type=ilm_stopping": "config/objective/ilm.py",
    **{f"model_type={name}": path for name, path in OBJECTIVES.items() if name != "ilm"},
    **{
        f"model=rotary_transformer_{size}_ilm_stopping": f"config/size/{size}.py"
        for size in ("tiny", "tiny2", "xtiny2")
    },
    "noise_schedule=idlm_geometric": "--noise=geometric",
    "noise_schedule=idlm_loglinear": "--noise=exponential",
    "noise_schedule=idlm_poisson": "--noise=linear",
    "noise_schedule.sigma": "--noise=linear --sigma_min=1 --sigma_max=1+{}",
    "stopping_class_weight": "--stop_class_weight={}",
    "devices": "torchrun --standalone --nproc_per_node={} train.py",
    "num_nodes": "bash slurm/train.slurm --nodes={}",
    "max_steps": "--max_iters={}",
    "precision": "--dtype=bfloat16",
    "gradient_clip_val": "--grad_clip={}",
    "accumulate_grad_batches": "--gradient_accumulation_steps={}",
    "val_check_interval": "--eval_interval={}",
    "every_n_train_steps": "--snapshot_interval={}",
    "lr_scheduler.name": "--lr_schedule={}",
    "rotary_emb_dim": "--rotary_dims={}",
    "loggers.wandb.id": "--wandb_run_name={}",
    **{
        f"predictor.{name}": f"{SAMPLE}--{name}={{}}"
        for name in (
            *("sampling_method", "top", "p", "second_sampling_method", "second_top", "second_p"),
            *("stopping_threshold", "length_temperature", "use_first_step_factor", "max_length"),
        )
    },
    "predictor.max_steps": SAMPLE + "--steps={}",
    "ckpt_path": SAMPLE + "--ckpt={}",
    "model_only_checkpoint_path": SAMPLE + "--ckpt={}",
    # ModernBERT as a diffusion model
    "experiment_name": "--out_dir=out/{}",
    "working_directory": "--out_dir={}/NAME",
    "path_to_prepped_data": "--dataset={}",
    "path_to_pretrained_checkpoint": "--init_from={}",
    "hf_model_name": "--init_from={}",
    "per_gpu_batch_size": "--batch_size={}",
    "num_training_steps": "--max_iters={}",
    "num_warmup_steps": "--warmup_iters={}",
    "max_grad_norm": "--grad_clip={}",
    "lr_scheduler_type": "--lr_schedule={}",
    "logging_steps": "--log_interval={}",
    "evaluation_interval": "--eval_interval={}",
    "checkpoint_interval": "--snapshot_interval={}",
    "log_wandb": "--wandb_log",
    # MDLM
    "mode=train": "config/mdlm_owt.py",
    "mode=sample_eval": SAMPLE + "--ckpt=FOLDER",
    "mode=ppl_eval": EVALUATE + "--ckpt=FOLDER",
    "data=openwebtext": "config/mdlm_owt.py",
    "parameterization=subs": "config/objective/mdlm.py",
    "checkpoint_path": "--init_from={}",
    # nanoGPT
    "max_new_tokens": SAMPLE + "--max_length={}",
    "start": SAMPLE + "--prompt={}",
}
# for whatever takes a --ckpt
TO_CKPT = {
    "model_path": "--ckpt={}",
    "ckpt_path": "--ckpt={}",
    "model_only_checkpoint_path": "--ckpt={}",
    "out_dir": "--ckpt={}",
    "gen_length": "--max_length={}",
    "max_new_tokens": "--max_length={}",
    "max_steps": "--steps={}",
    "predictor": "--sampler={}",
    "strategy=random": "--sampler=ancestral",
    "strategy=low_confidence": "--sampler=confidence",
    "remasking=random": "--sampler=random",
    "remasking=low_confidence": "--sampler=confidence",
    "cfg_scale": "--cfg={}",
    "start": "--prompt={}",
    "prefix": "--prompt={}",
}
TO_SAMPLE = TO_CKPT | {
    "suffix": "--infill='TEXT[20]{}'",
    "num_unconditional_samples": "--num_samples={}",
    "eval_perplexity": "--cascade=STAGE1,STAGE2,STAGE3 --judge=gpt2-large",
    "output_dir": "--cascade=STAGE1,STAGE2,STAGE3 --output_dir={}",
}
TO_EVALUATE = TO_CKPT | {"eval_perplexity": "--judge=gpt2-large", "seq_len": "--max_length={}"}
# for `python -m patches.prepare`
TO_PATCHES = {
    "input": "--source={}",
    "output": "--dataset={}",
    "train_file": "--source={}",
    "dataset_name": "--source={}",
    "max_token_length": "--block_size={}",
    "max_token": "--block_size={}",
    "model": "--tokenizer={}",
    "model_name_or_path": "--tokenizer={}",
    "tokenizer_name": "--tokenizer={}",
    "tokenizer_path": "--tokenizer={}",
    "max_train_samples": "--max_commits={}",
    "validation_split_percentage": "--val_split_ratio=SHARE",
}
# for `python -m tasks.stars`
TO_STARS = {
    "pathlength": "--path={}",
    "max_pathlength": "--path={} --variable",
    "vocab_size": "--node_ids={}",
    "num_nodes": "--node_ids={}",
}
WRITE = {
    "Config": TO_TRAIN,
    "SampleConfig": TO_SAMPLE,
    "EvaluateConfig": TO_EVALUATE,
    "CascadeConfig": TO_EVALUATE,
    "DiffConfig": TO_PATCHES,
    "StarsConfig": TO_STARS,
}

# What nothing has to be written for, and why
NEEDLESS = {
    "job_type": "the script is the job: train.py, sample.py or evaluate.py",
    "tokens": "the vocabulary is that of the corpus",
    "datamodule": "what a row is comes from the corpus",
    "collation_strategy": "what a row is comes from the corpus",
    "training.weight": "the loss is the bound on the likelihood",
    "eps": "it is 1e-8",
    "noise_removal": "every sampler ends without noise",
    "disable_checkpoint_loading": "a run begins anew, unless with --init_from=resume or auto",
    "max_samples": "training reads the whole corpus",
    "graph.file": "the corpus is --dataset",
    "report_all": "one loss is logged for each step",
    "model.name": "a network is what its sizes say",
    "model.type": "a network is what its sizes say",
    "force_flash_attn": "torch chooses how attention is computed",
    "final_layer_without_normalization": "weights that are loaded say so themselves",
    "use_muon=false": "it is an option, --optimizer=muon",
    "use_pretrained=false": "a network starts anew, unless --init_from names weights",
    "muon_momentum": "it is 0.95",
    "muon_nesterov": "it is true",
    "muon_ns_steps": "it is 5",
    "wandb.offline": "nothing is sent without --wandb_log; WANDB_MODE=offline keeps it here",
    "wandb": "nothing is sent without --wandb_log",
    "wandb_entity": "WANDB_ENTITY says it",
    "no_log_wandb": "nothing is sent without --wandb_log",
    "log_grad_norm": "log.jsonl always has it",
    "log_learning_rate": "log.jsonl always has it",
    "generate_text": "samples are always printed",
    "num_workers": "batches are read in the process itself",
    "preprocessing_num_workers": "one process is enough",
    "threads": "OMP_NUM_THREADS says it",
    "do_train": "train.py trains",
    "do_eval": "train.py evaluates every --eval_interval steps",
    "fp16": "there is bfloat16, where a GPU has it",
    "trainer_strategy": "torchrun says it, or --parallel=fsdp",
    "hf_model_name": "the checkpoint knows its network",
    "mask_id": "the checkpoint knows it",
    "batch_size": "the corpus does not depend on it",
    "keep_linebreaks": "white space stays as it is",
    "overwrite_cache": "nothing is cached",
    "use_auth_token": "HF_TOKEN says it",
}


def instead(command: str, key: str, value: str, word: str) -> str:
    """What to do about `word`, an argument of another project; empty if `key` is in no table.
    `command` is the name of our class of options."""
    ours = WRITE.get(command, {})
    if key in ours:
        return f"write {ours[key].replace('{}', value)} instead of {word}"
    return f"leave out {word}: {NEEDLESS[key]}" if key in NEEDLESS else ""
