"""Which options a sampler reads: all of its list and no others; a flag that would change nothing is
refused; --sampler=auto and the table of defaults in sample.py's -h."""

import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import evaluate
import sample
from checkpoint import OBJECTIVES, Model, build_network, build_objective
from configurator import Config, UserError, one_of
from diffusion import Masked
from objective import CHOICES, Allowed, Objective, SampleOptions, generator
from sample import SampleConfig, with_sampler
from tokenizer import Symbols

SMALL = {"n_layer": 1, "n_head": 2, "n_embd": 16, "cond_dim": 8, "block_size": 12}
FORMS = {name: {"objective": name} for name in OBJECTIVES}
FORMS |= {"sedd, uniform": {"objective": "sedd", "graph": "uniform"}}
FORMS |= {"masked, edit": {"objective": "masked", "token_noise": 0.1}}
FORMS |= {"ilm, delete": {"objective": "ilm", "token_noise": 0.1}}
FORMS["idlm"]["noise"] = "exponential"
REFUSED = {  # if not read
    *("unmask_schedule", "block_length", "cfg", "remask", "cache", "delay", "draft"),
    *("corrector_steps", "delete"),
}
PROGRAM = {"sampler", "wrap", "length", "candidates"}  # no choice of a user
OTHER = {  # another value than the default
    "steps": 3,
    "temperature": 0.3,
    "top_k": 1,
    "top_p": 0.2,
    "unmask_schedule": "cosine",
    "threshold": 0.01,
    "factor": 3.0,
    "entropy_bound": 9.0,
    "block_length": 2,
    "cfg": 2.0,
    "remask": "cap",
    "eta": 0.9,
    "cache": "dual",
    "delete": 2,
    "draft": True,
    "draft_time": 0.9,
    "renoise": False,
    "corrector_steps": 1,
    "corrector_places": 3,
    "corrector_order": "random",
    "stop": 2,
    "delay": (2, 3),
    "banned": (1,),
    "allowed": Allowed(torch.arange(8)[None] == 2),
    "strict_p": True,
    "gap": SampleOptions(top_k=1),
    "capacity": 15,
    "exact": True,
    "stop_threshold": 0.01,
    "stop_temperature": 9.0,
    "length_temperature": 9.0,
    "first_step_factor": False,
}
BESIDE = [  # options that decide whether others have an effect
    {},
    {"top_p": 0.5},
    {"remask": "cap"},
    {"remask": "conf"},
    {"unmask_schedule": "threshold"},
    {"unmask_schedule": "factor"},
    {"unmask_schedule": "entropy_bound"},
    {"exact": True},
    {"exact": True, "top_p": 0.5},
    {"remask": "edit"},
    {"remask": "edit", "draft": True},
    {"delete": 3},
    {"draft": True},
    {"corrector_steps": 1},
]


def model_of(form: str, **more: Any) -> Model:
    """A random network on four letters."""
    if form == "xlnet":
        pytest.importorskip("transformers")
    tok = Symbols(list("abcd"))
    cfg = Config(**{**SMALL, **FORMS[form], **more})
    meta: dict[str, Any] = {"vocab_size": tok.vocab_size, "specials": tok.specials}
    torch.manual_seed(1)
    objective = build_objective(cfg, meta)
    net = build_network(cfg, objective)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return Model(net.eval(), objective, tok, cfg, meta, 0)


def start(model: Model) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, given): rows that begin with BOS."""
    ids = torch.full((6, 9), model.meta["specials"]["bos"])
    return ids, torch.arange(9).expand(6, 9) < 1


def cases(model: Model) -> list[SampleOptions]:
    """Every sampler beside BESIDE, as far as it takes that."""
    edits = hasattr(model.objective, "token_noise")  # others refuse remask=edit
    return [
        SampleOptions(sampler=name, **beside)
        for name in model.objective.samplers
        for beside in BESIDE
        if edits or beside.get("remask") != "edit"
        if {*beside} <= model.objective.options_used(SampleOptions(sampler=name, **beside))
    ]


def written(model: Model, options: SampleOptions) -> torch.Tensor:
    frames = list(model.objective.sample(model.net, *start(model), generator(3), options))
    return frames[-1].ids


def test_every_option_is_tried():
    assert {*OTHER} | PROGRAM == {field.name for field in fields(SampleOptions)}


LONG = (
    "bd3",
    "flex",
    "mlm",
    "sedd",
    "xlnet",
)  # minutes together; their samplers are mostly masked's
SOME = [pytest.param(x, marks=pytest.mark.slow) if x in LONG else x for x in FORMS]


@pytest.mark.parametrize("form", SOME)
def test_what_is_not_on_the_list_changes_nothing(form: str):
    """Or is refused."""
    model = model_of(form)
    for options in cases(model):
        usual = written(model, options)
        for key in {*OTHER} - model.objective.options_used(options):
            try:
                other = written(model, replace(options, **{key: OTHER[key]}))
            except UserError:
                continue
            assert torch.equal(usual, other), (options, key)


class Traced:
    """Options that record which of them are looked at."""

    def __init__(self, options: SampleOptions):
        self.options, self.seen = options, set()

    def __getattr__(self, name: str) -> Any:
        self.seen.add(name)
        return getattr(self.options, name)


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_what_is_looked_at_is_on_the_list_and_the_reverse(form: str):
    """But for what is refused, which need not be read to be none, and for steps, which masked
    samplers share out before they know who wants them."""
    model = model_of(form)
    listed: dict[str, set[str]] = {}
    seen: dict[str, set[str]] = {}
    for options in cases(model):
        sampler, traced = model.objective.sampler(options), Traced(options)
        ids, given = start(model)
        list(sampler(model.objective, model.net, ids, given, generator(3), traced).frames())
        name = options.sampler
        listed.setdefault(name, set()).update(sampler.options_read(model.objective, options))
        seen.setdefault(name, set()).update(traced.seen)
    for name in listed:
        assert seen[name] - listed[name] <= REFUSED | {"sampler", "steps"}, name
        unused = sampler.without_effect(model.objective, SampleOptions(sampler=name))
        assert listed[name] - seen[name] <= unused, name


DRAWN = {"first_hitting", "ancestral", "analytic", "euler", "random"}  # places, or when
SETTLED = {"sedd", "masked", "mlm", "bd3", "ar", "xlnet", "ilm", "it"}  # the others draw numbers


@pytest.mark.parametrize("form", sorted(SETTLED))
@torch.no_grad()
def test_a_row_is_what_it_would_be_alone(form: str):
    """Bit for bit, where nothing is drawn: a batch of another size rounds otherwise, which decides
    no tie. (The laws of samplers that draw are enumerated, many rows of one batch against one row,
    in the tests of each family.) Rows of MASK alone are all ties: a rotary network sees the same at
    each of their places."""
    model = model_of(form, n_layer=2)
    several = 0
    for name in {*model.objective.samplers} - DRAWN:
        options = SampleOptions(sampler=name, temperature=0.0)
        if "gap" in model.objective.options_used(options):
            options = replace(options, gap=SampleOptions(temperature=0.0))
        for seed in range(10):
            for k, p in enumerate(model.net.parameters()):
                p.copy_(
                    torch.randn(p.shape, generator=generator(seed, k)) * (0.7 if seed % 2 else 0.3)
                )
            ids = torch.randint(4, (6, 9), generator=generator(seed, 1))
            given = torch.arange(9) < torch.tensor([[0], [0], [1], [2], [2], [5]])
            given &= torch.tensor(seed % 2 > 0)
            if not isinstance(model.objective, Masked):
                ids[:, 0], given[:, 0] = model.meta["specials"]["bos"], True
            rows = list(model.objective.sample(model.net, ids, given, generator(3), options))[-1]
            several += len({tuple(row) for row in rows.ids.tolist()}) > 3
            for i in range(6):
                one = (ids[i : i + 1], given[i : i + 1], generator(4), options)
                alone = list(model.objective.sample(model.net, *one))[-1].ids[0]
                both = min(len(alone), rows.ids.shape[1])
                assert torch.equal(alone[:both], rows.ids[i, :both]), (name, seed, i)
    assert several > 1  # they do write different rows


# ---- the command line ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form, flags, words",
    [
        ("masked", "--remask=conf --eta=0.1", ["eta=0.1", "sampler=ancestral", "--remask=cap"]),
        ("masked", "--eta=0.1", ["eta", "--remask=cap"]),
        ("masked", "--threshold=0.5", ["threshold=0.5", "--unmask_schedule=threshold"]),
        ("masked", "--factor=0.5", ["factor", "--unmask_schedule=factor"]),
        ("masked", "--entropy_bound=1", ["entropy_bound", "--unmask_schedule=entropy_bound"]),
        ("masked", "--unmask_schedule=threshold --steps=9", ["steps=9", "no use"]),
        ("masked", "--unmask_schedule=threshold --factor=1", ["factor"]),
        ("masked", "--sampler=first_hitting --steps=64", ["steps=64", "first_hitting"]),
        ("masked", "--sampler=random --delay_eos", ["delay_eos", "random"]),
        ("masked", "--sampler=ancestral --unmask_schedule=uniform", ["unmask_schedule=uniform"]),
        ("masked", "--sampling_method=sample", ["sampling_method", "objective=masked"]),
        ("masked", "--top=5", ["top=5"]),
        ("masked", "--stopping_threshold=0.5", ["stopping_threshold"]),
        ("masked", "--use_first_step_factor=False", ["use_first_step_factor"]),
        ("bd3", "--cfg=1", ["cfg", "objective=bd3"]),
        ("sedd, uniform", "--block_length=2", ["block_length"]),
        ("sedd, uniform", "--remask=cap", ["remask"]),
        ("ar", "--steps=3", ["steps=3", "objective=ar", "left_to_right"]),
        ("ar", "--cache=dual", ["cache"]),
        ("ar", "--threshold=0.5", ["threshold"]),
        ("ilm", "--steps=3", ["steps"]),
        ("ilm", "--unmask_schedule=cosine", ["unmask_schedule"]),
        ("ilm", "--block_length=2", ["block_length"]),
        ("ilm", "--cfg=1", ["cfg"]),
        ("ilm", "--remask=cap", ["remask"]),
        ("ilm", "--cache=prefix", ["cache"]),
        ("ilm", "--delay_eos", ["delay_eos"]),
        ("ilm", "--top=5", ["top=5", "--sampling_method=sample_top_k"]),
        ("ilm", "--sampling_method=sample_top_k --top_k=5", ["top_k=5"]),
        ("ilm", "--second_p=0.5", ["second_p", "--second_sampling_method=sample_top_p"]),
        ("ilm", "--sampler=threshold --threshold=0.5", ["threshold"]),
        ("ilm", "--sampler=ancestral --stopping_threshold=0.5", ["stopping_threshold"]),
        ("ilm", "--length_temperature=2", ["length_temperature"]),
        ("ilm", "--infill=a[2]b --stopping_threshold=0.5", ["stopping_threshold"]),
        ("it", "--stopping_temperature=2", ["stopping_temperature"]),
        ("idlm", "--stopping_threshold=0.5", ["stopping_threshold"]),
        ("flex", "--second_sampling_method=sample", ["second_sampling_method"]),
    ],
)
def test_flags_without_effect_are_refused(form: str, flags: str, words: list[str]):
    cfg, origins = sample.load(SampleConfig, flags.split())
    with pytest.raises(UserError) as caught:
        with_sampler(cfg, origins, model_of(form))
    message = str(caught.value)
    assert "command line" in message and "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    "form, flags, sampler",
    [
        ("sedd", "", "first_hitting"),
        ("sedd", "--steps=64", "analytic"),
        ("sedd", "--remask=cap --eta=0.1", "ancestral"),
        ("sedd, uniform", "", "analytic"),
        ("masked", "--temperature=0.5", "first_hitting"),
        ("masked", "--steps=9 --block_length=2", "ancestral"),
        ("masked", "--unmask_schedule=cosine", "random"),
        ("masked", "--unmask_schedule=threshold --threshold=0.5", "confidence"),
        ("masked", "--unmask_schedule=entropy_bound --entropy_bound=1", "confidence"),
        ("masked", "--delay_eos", "confidence"),
        ("ilm", "--threshold=0.5", "parallel"),
        ("ilm", "--sampling_method=sample_top_p --p=0.5", "threshold"),
        ("ilm", "--second_sampling_method=sample_top_k --second_top=1", "threshold"),
        ("idlm", "--steps=9 --length_temperature=2", "steps"),
        ("ar", "--top_k=3", "left_to_right"),
    ],
)
def test_auto_is_the_first_that_reads_all_flags(form: str, flags: str, sampler: str):
    model = model_of(form)
    cfg, origins = sample.load(SampleConfig, flags.split())
    cfg = with_sampler(cfg, origins, model)
    assert sample.settings(cfg, model)["sampler"] == sampler


def test_an_objective_with_a_sample_of_its_own():
    """As in the README: no class of Sampler, and the options that all of them read."""

    class Mine(Objective):
        samplers = ("mine",)

    model = model_of("ar")._replace(objective=Mine())
    for flags in ("--temperature=0.5 --top_k=2", ""):
        cfg, origins = sample.load(SampleConfig, flags.split())
        assert with_sampler(cfg, origins, model) == cfg
    with pytest.raises(UserError, match="sampler=mine has no use for it"):
        with_sampler(*sample.load(SampleConfig, ["--steps=3"]), model)


def test_help_tells_the_samplers_of_every_objective(run_cli: Any):
    shown = run_cli("sample.py", "-h").stdout
    table = dict(re.findall(r"^    (\w.*?)  +((?:\w+, )*\w+)$", shown, re.M))
    rows = {name: row for names, row in table.items() for name in names.split(", ")}
    rows |= {name: table[name] for name in ("sedd, uniform", "ilm, delete", "ilm")}
    rows["masked, edit"] = rows["masked"]
    for form in set(FORMS) - {"xlnet", "sedd"}:
        assert rows[form].split(", ") == [*model_of(form).objective.samplers], form
    assert (
        "sedd              first_hitting, analytic, euler, and those behind it of masked" in shown
    )
    behind = model_of("masked").objective.samplers[1:]
    assert model_of("sedd").objective.samplers == ("first_hitting", "analytic", "euler", *behind)


def test_an_empty_choice_is_shown():
    with pytest.raises(UserError, match=r"one of '' \(empty\), sample, sample_top_k"):
        sample.main(["--sampling_method=best"])


def test_commands_refuse_before_they_sample(trained: Any, run_cli: Any, assert_refused: Any):
    ckpt = f"--ckpt={trained()}"
    flags = ["--remask=conf", "--eta=0.1"]
    words = ("eta=0.1 (command line)", "objective=sedd with sampler=ancestral", "leave it out")
    assert_refused(run_cli("sample.py", ckpt, *flags), *words)
    assert_refused(run_cli("evaluate.py", ckpt, "--rows=0", *flags), *words)
    unread = run_cli("evaluate.py", ckpt, "--prompt=a", "--answer=b", "--steps=3")
    assert_refused(unread, "steps (command line)", "--answer")


def test_commands_end_with_what_was_written_and_where(trained: Any, capsys: Any, tmp_path: Path):
    ckpt = f"--ckpt={trained()}"
    gif, html, numbers = (tmp_path / name for name in ("a.gif", "a.html", "a.json"))
    sample.main([ckpt, "--num_samples=2", f"--gif={gif}", f"--html={html}"])
    assert capsys.readouterr().out.splitlines()[-1] == f"wrote {gif} and {html}"
    few = [ckpt, "--rows=2", "--samples=2"]
    evaluate.main([*few, f"--json={numbers}"])
    assert (
        capsys.readouterr().out.splitlines()[-1] == f"wrote all numbers and settings to {numbers}"
    )
    evaluate.main(few)
    assert capsys.readouterr().out.splitlines()[-1].startswith("nothing was written; --json=FILE")


def test_flags_in_a_comparison_are_of_use_to_one_of_the_models(trained: Any, capsys: Any):
    more = {"time_input": False, "max_iters": 2}
    paths = ",".join(str(trained(objective=name, **more)) for name in ("ar", "masked"))
    few = [f"--compare={paths}", "--rows=4", "--samples=2"]
    evaluate.main([*few, "--steps=3"])
    printed = capsys.readouterr().out
    assert "left_to_right, 1" in printed and "ancestral, 1" in printed
    with pytest.raises(UserError, match=r"eta \(command line\)"):
        evaluate.main([*few, "--eta=0.1"])


def test_both_commands_have_the_same_default(trained: Any, capsys: Any):
    ckpt = f"--ckpt={trained()}"
    sample.main([ckpt, "--num_samples=2"])
    assert "by first_hitting" in capsys.readouterr().out
    evaluate.main([ckpt, "--rows=0", "--samples=4"])
    assert "random order (first_hitting)" in capsys.readouterr().out
    evaluate.main([ckpt, "--rows=0", "--samples=4", "--steps=9"])
    printed = capsys.readouterr().out
    assert "samples (analytic)" in printed and "mirrored (analytic)" in printed


@pytest.mark.parametrize("key", ["cache", "remask", "unmask_schedule"])
def test_messages_list_every_choice(key: str):
    """In the words of the configs; an empty choice would be named."""
    with pytest.raises(UserError) as caught:
        SampleOptions(**{key: "no such"})
    message = str(caught.value)
    assert message.startswith(f"{key} must be {one_of(CHOICES[key])}, got")
    assert all(choice in message for choice in CHOICES[key]) and "of ," not in message
