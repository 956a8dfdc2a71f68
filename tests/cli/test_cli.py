"""The command line as a person at a terminal meets it: results, files, errors, exit statuses."""

import json
import re
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest

import perturbkernel as pk
from perturbkernel import __version__, interrupts, report
from perturbkernel.cli.main import build_parser, main

SMALL = [
    "run",
    "--data",
    "shifted_gaussian",
    "--n",
    "50",
    "--d",
    "6",
    "--shift",
    "1",
    "--control-draws",
    "2",
    "--quiet",
]


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "result"
    assert main([*SMALL, "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def without_figures(monkeypatch):
    """Runs whose numbers are looked at draw nothing: a page of figures takes a second."""
    monkeypatch.setattr("perturbkernel.report.results.figures", lambda _: {})


def test_a_run_leaves_every_file_and_nothing_else(result):
    names = {path.name for path in result.iterdir()}
    figures = {"perturbations", "outputs", "decision_map", "accuracy_against_size"}
    assert names == {"report.json", "arrays.npz", "report.html"} | {
        f"{f}.{e}" for f in figures for e in ("png", "svg")
    }


def test_the_report_is_complete_and_loads_back(result):
    loaded = report.load(result)
    assert loaded.configuration["n_train"] == 40
    assert loaded.configuration["command"].startswith("perturbkernel run --data shifted_gaussian")
    # Classes 2.4 standard deviations from the boundary.
    assert loaded.metrics["accuracy"]["g"]["test"] > 0.9
    assert loaded.environment["perturbkernel"] == __version__
    assert loaded.arrays["delta"].shape == (40, 6)
    np.testing.assert_allclose(np.linalg.norm(loaded.arrays["delta"], axis=1), 0.14, rtol=1e-6)
    # The saved outputs on test points are those that the reported accuracy was computed from.
    outputs, labels = loaded.arrays["test_g"], loaded.arrays["test_labels"]
    assert np.mean(np.sign(outputs) == labels) == pytest.approx(
        loaded.metrics["accuracy"]["g"]["test"], abs=1e-6
    )


def test_the_page_is_self_contained(result):
    page = (result / "report.html").read_text()
    assert len(re.findall(r'src="data:image/png;base64,', page)) == 4
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_a_page_is_drawn_again_from_its_arrays_alone(result, capsys):
    before = (result / "report.html").read_text(), (result / "decision_map.svg").read_text()
    for name in ("report.html", "decision_map.svg"):
        (result / name).unlink()
    assert main(["report", str(result)]) == 0
    assert "report.html" in capsys.readouterr().out
    assert (
        (result / "report.html").read_text(),
        (result / "decision_map.svg").read_text(),
    ) == before


@pytest.mark.usefixtures("without_figures")
def test_the_same_seed_gives_the_same_result_and_another_does_not(result, tmp_path):
    assert main([*SMALL, "--out", str(tmp_path / "again")]) == 0
    assert main([*SMALL, "--seed", "1", "--out", str(tmp_path / "other")]) == 0
    first = report.load(result)
    again = report.load(tmp_path / "again")
    other = report.load(tmp_path / "other")
    np.testing.assert_array_equal(first.arrays["delta"], again.arrays["delta"])
    assert not np.array_equal(first.arrays["delta"], other.arrays["delta"])


@pytest.mark.usefixtures("without_figures")
def test_the_command_and_the_python_example_are_one_experiment(tmp_path):
    main(["run", "--n", "200", "--control-draws", "1", "--quiet", "--out", str(tmp_path / "out")])
    digits = pk.data.mnist5k(classes=(1, 2)).subset(
        200, key=jax.random.fold_in(jax.random.key(0), 1)
    )
    train, test = digits.split(test=0.2, key=jax.random.key(0))
    learner = pk.KernelLearner(pk.TwoLayerNTK(), dynamics=pk.GradientFlow(10.0))
    r = pk.learn_from_perturbations(learner, train, size=0.14, key=jax.random.key(1))
    arrays = report.load(tmp_path / "out").arrays
    np.testing.assert_array_equal(arrays["test_labels"], test.targets)
    np.testing.assert_allclose(arrays["test_g"], r.g(test.inputs), rtol=1e-5)


@pytest.mark.usefixtures("without_figures")
def test_a_failed_write_leaves_the_earlier_result_whole(result, monkeypatch):
    earlier = report.load(result)
    monkeypatch.setattr("perturbkernel.report.results.report_page", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        report.save(earlier, result)
    assert report.load(result).configuration == earlier.configuration
    assert not list(result.glob(".unfinished*"))


def test_the_table_and_its_words(capsys):
    assert main([*SMALL, "--scenario", "b", "--size", "1", "--targets", "balanced"]) == 0
    printed = capsys.readouterr().out
    assert (
        "shifted_gaussian" in printed and "scenario (b), size 1 (l2), balanced targets" in printed
    )
    for row in (
        "f, trained on the data",
        "g, trained on the perturbations",
        "unperturbed",
        "random",
        "shuffled",
    ):
        assert re.search(rf"{re.escape(row)}.* \d\.\d{{3}}", printed), row
    assert "Signal" in printed and "balanced targets)" in printed


@pytest.mark.parametrize(
    "options",
    [
        ["--loss", "logistic", "--time", "3", "--slope", "0.2", "--train-bias"],
        ["--loss", "squared", "--time", "inf", "--loss-g", "identity", "--time-g", "1"],
        ["--learning-rate", "0.1", "--steps", "10", "--momentum", "0.5", "--no-train-bias-g"],
        [
            "--norm",
            "linf",
            "--direction",
            "frozen_gates",
            "--bounds",
            "-3",
            "3",
            "--precision",
            "64",
        ],
    ],
)
@pytest.mark.usefixtures("without_figures")
def test_options_reach_the_experiment(options, tmp_path):
    """In float64 too where asked, and JAX is left as it was: conftest.py sees to that."""
    assert main([*SMALL, *options, "--out", str(tmp_path)]) == 0
    loaded = report.load(tmp_path)
    assert loaded.arrays["delta"].dtype == (np.float64 if "64" in options else np.float32)
    configuration = loaded.configuration
    described = f"{configuration['f']} {configuration['g']} {configuration}"
    expected = {
        "logistic": "slope=0.2, train_bias=True",
        "inf": "identity loss, GradientFlow(time=1.0)",
    }
    expected |= {
        "0.1": "HeavyBall(learning_rate=0.1, steps=10, momentum=0.5)",
        "linf": "'precision': 64",
    }
    for option, words in expected.items():
        if option in options:
            assert words in described


def test_ones_own_data_and_carrier(tmp_path, capsys):
    rng = np.random.default_rng(0)
    labels = np.repeat(["cat", "dog"], 20)
    inputs = rng.normal(size=(40, 3)) + np.where(labels == "cat", 2, -2)[:, None]
    np.savez(tmp_path / "mine.npz", inputs=inputs, targets=labels)
    np.save(tmp_path / "carrier.npy", rng.normal(size=(32, 3)))
    run = [
        "run",
        "--quiet",
        "--data",
        str(tmp_path / "mine.npz"),
        "--classes",
        "cat",
        "dog",
        "--size",
        "3",
    ]
    assert main([*run, "--carrier", str(tmp_path / "carrier.npy")]) == 0
    assert (
        "cat against dog, 32 training and 8 test points, d = 3; carrier" in capsys.readouterr().out
    )


def only_perturbations(saved):
    """Of the figures, the one that shows the carrier: drawing all takes a second."""
    return {"perturbations": report.figures(saved)["perturbations"]}


def test_noise_is_a_carrier_and_may_be_perturbed_itself(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("perturbkernel.report.results.figures", only_perturbations)
    carrier = ["--carrier", "uniform", "--carrier-points", "70"]
    run = ["run", "--quiet", "--n", "50", "--control-draws", "2", "--size", "5", *carrier]
    assert main([*run, "--at", "carrier", "--out", str(tmp_path)]) == 0
    assert "carrier uniform, 70 points, perturbed there, size 5" in " ".join(
        capsys.readouterr().out.split()
    )
    arrays = report.load(tmp_path).arrays
    assert arrays["delta"].shape == (70, 784) and np.abs(arrays["sample_inputs"]).max() <= 1
    page = (tmp_path / "report.html").read_text()
    assert "perturbed all 70 points of the carrier by 5" in page
    assert main(run) == 2  # at the data, noise comes in turns of the training points
    assert "multiple" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["walk"], "'walk' is none of run"),
        (["run", "--size", "big"], "argument --size: wanted a finite number above 0; got 'big'"),
        (["run", "--size", "-1"], "argument --size: wanted a finite number above 0; got '-1'"),
        (["run", "--data", "nothing"], "--data must be one of mnist5k"),
        (["run", "--data", "absent.npz"], "absent.npz"),
        (["run", "--data", "mnist"], "--data mnist needs --path DIR"),
        (["run", "--path", "here"], "--path goes with --data mnist, fashion_mnist, cifar10"),
        (["run", "--classes", "3", "3"], "--classes must name different labels; got 3 3"),
        (["run", "--classes", "3", "x"], "--classes: MNIST has no label x; it has 0, 1, 2"),
        ([*SMALL, "--classes", "1", "2"], "--classes does not apply to shifted_gaussian"),
        (
            [*SMALL, "--time", "inf"],
            "--time inf needs --loss squared, or a --ridge: the identity loss has no minimum",
        ),
        ([*SMALL, "--ridge", "-1"], "argument --ridge: wanted a finite number, 0 or above"),
        ([*SMALL, "--norm", "l1"], "argument --norm: 'l1' is none of l2, linf"),
        ([*SMALL, "--certified"], "--certified goes with --robust SIZE"),
        (
            [*SMALL, "--robust", "1", "--robust-norm", "l0", "--certified"],
            "--certified goes with --robust-norm l2, linf, l1",
        ),
        ([*SMALL, "--steps", "3"], "heavy ball needs both --learning-rate and --steps"),
        ([*SMALL, "--steps-g", "3"], "heavy ball needs both --learning-rate-g and --steps-g"),
        (
            [*SMALL, "--time", "1", "--learning-rate", "1", "--steps", "3"],
            "--time is for gradient flow",
        ),
        (
            [*SMALL, "--loss", "squared", "--learning-rate", "1e6", "--steps", "3"],
            "--learning-rate must be below",
        ),
        ([*SMALL, "--slope", "2"], "argument --slope: wanted a number from 0 to 1; got '2'"),
        ([*SMALL, "--bounds", "1", "0"], "--bounds needs LOW < HIGH; got 1 0"),
        ([*SMALL, "--carrier", "absent.npy"], "absent.npy"),
        ([*SMALL, "--at", "carrier"], "--at carrier needs --carrier: a file, uniform or gaussian"),
        (
            [*SMALL, "--carrier-points", "9"],
            "--carrier-points goes with --carrier uniform or --carrier gaussian",
        ),
        (
            [*SMALL, "--control-draws", "0"],
            "argument --control-draws: wanted a whole number, 1 or more",
        ),
        ([*SMALL, "--data", "gaussian"], "--shift goes with --data shifted_gaussian"),
        (["run", "--d", "5"], "--d is of synthetic data; --data mnist5k has a dimension of its"),
        (["run", "--data", "mnist", "--path", ".", "--test", "0.1"], "a test set of its own"),
        ([*SMALL, "--momentum", "0.5"], "--momentum is of heavy ball: --learning-rate and --ste"),
        ([*SMALL, "--momentum-g", "0.5"], "--momentum-g is of heavy ball"),
        ([*SMALL, "--size", "0"], "argument --size: wanted a finite number above 0; got '0'"),
        ([*SMALL, "--size", "nan"], "argument --size: wanted a finite number above 0"),
        ([*SMALL, "--size", "1e-38"], "--size must be from 3e-18 to 2e+16 in float32; got 1e-38"),
        ([*SMALL, "--size", "1e30"], "--size must be from"),
        ([*SMALL, "--n", "0"], "argument --n: wanted a whole number, 1 or more; got '0'"),
        ([*SMALL, "--n", "1"], "--test 0.2 of 1 points leaves none to train"),
        ([*SMALL, "--n", "3", "--test", "0.7"], "training points has the label"),
        ([*SMALL, "--n", "10" + "0" * 14], "the data alone takes"),
        (["run", "--n", "1001"], "--n 1001 is more than the 1000 points of these classes"),
        ([*SMALL, "--test", "10"], "argument --test: wanted a number between 0 and 1; got '10'"),
        ([*SMALL, "--seed", str(10**30)], "--seed: wanted a whole number from 0 to 4294967295"),
        ([*SMALL, "--seed", "-1"], "--seed: wanted a whole number from 0 to 4294967295"),
        (["verify", "--seed", "-1"], "--seed: wanted a whole number from 0 to 4294967295"),
        (["bench", "--seed", str(2**32)], "--seed: wanted a whole number from 0 to 4294967295"),
        ([*SMALL, "--out", "/proc/nowhere"], "--out /proc/nowhere: nothing can be written there"),
        (["verify", "--out", "/proc/nowhere"], "nothing can be written there"),
        (["bench", "--out", "/proc/nowhere"], "nothing can be written there"),
        ([*SMALL, "--loss", "softmax"], "--loss softmax is not for 2 classes; give one of"),
        ([*SMALL, "--targets", "next"], "--targets next is for more than two classes"),
        (
            ["run", "--classes", "1", "2", "3", "--loss-g", "logistic"],
            "--loss-g logistic is not for 3 classes; give one of identity, squared, softmax",
        ),
        ([*SMALL, "--carrier", "uniform", "--carrier-points", "41"], "or a multiple; got 41"),
        ([*SMALL, "--carrier", "uniform", "--scenario", "b"], "exclude each other"),
        (["report", "absent"], "absent holds no finished result"),
        ([*SMALL, "--config", "absent.json"], "--config absent.json: No such file"),
        ([*SMALL, "--config", __file__], "--config must be the report.json of a run"),
    ],
)
def test_errors_are_one_line_and_exit_with_2(arguments, message, capsys):
    try:
        status = main(arguments)
    except SystemExit as stop:
        status = stop.code
    printed = capsys.readouterr().err
    assert status == 2
    assert message in printed
    assert printed.count("\n") == 1 and "Traceback" not in printed
    assert not re.search(r"pk\.|from_arrays|_[a-z]+ must", printed)  # the words of Python


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (
            ["verfy"],
            "'verfy' is none of run, verify, reproduce, bench, report, cite, completion; did you"
            " mean verify?",
        ),
        ([*SMALL, "--scenaro", "a"], "run: error: no option --scenaro; did you mean --scenario?"),
        ([*SMALL, "--epsilon=0.1"], "no option --epsilon; did you mean --size?"),
        ([*SMALL, "--loss", "logistik"], "did you mean logistic?"),
        (["reproduce", "--scael", "paper"], "no option --scael; did you mean --scale?"),
        ([*SMALL, "--qqq"], "no option --qqq (see"),
    ],
)
def test_a_misspelt_word_is_answered_with_the_nearest(arguments, hint, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    printed = capsys.readouterr().err
    assert stop.value.code == 2
    assert hint in printed and printed.count("\n") == 1


@pytest.mark.usefixtures("without_figures")
def test_a_run_is_repeated_from_its_report(result, tmp_path):
    first = report.load(result)
    main(["run", "--config", str(result / "report.json"), "--out", str(tmp_path / "same")])
    again = report.load(tmp_path / "same")
    assert again.metrics["accuracy"] == first.metrics["accuracy"]
    for name, array in first.arrays.items():
        np.testing.assert_array_equal(again.arrays[name], array)
    # What is given beside it replaces its own, and its folder is left alone.
    before = (result / "report.json").read_bytes()
    config = str(tmp_path / "same" / "report.json")
    main(["run", "--seed", "7", "--config", config, "--out", str(tmp_path / "other")])
    assert report.load(tmp_path / "other").configuration["seed"] == 7
    assert main(["run", "--config", config, "--quiet"]) == 0
    assert (result / "report.json").read_bytes() == before


def test_the_citation_is_that_of_the_manual(capsys):
    assert main(["cite"]) == 0
    printed = capsys.readouterr().out
    page = (Path(__file__).parents[2] / "docs" / "cite.md").read_text()
    entries = re.findall(r"```bibtex\n(.*?)```", page, re.DOTALL)
    assert printed == "\n".join(entries)
    assert f"version = {{{__version__}}}" in entries[1]


def test_the_version_is_the_same_everywhere():
    root = Path(__file__).parents[2]
    assert f"\nversion: {__version__}\n" in (root / "CITATION.cff").read_text()
    newest = re.search(r"^## (\S+) \((.+)\)$", (root / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None and newest[1] == __version__


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_shells_complete_commands_and_options(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("reproduce", "scenario", "softmax", "history"):  # commands, options, choices
        assert word in script


def test_bash_completes_an_option(capsys, tmp_path):
    main(["completion", "bash"])
    (tmp_path / "script").write_text(capsys.readouterr().out)
    words = "COMP_WORDS=(perturbkernel run --scen) COMP_CWORD=2"
    line = f'source ./script; {words}; _shtab_perturbkernel; echo "${{COMPREPLY[@]}}"'
    printed = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True)
    assert printed.stdout.split() == ["--scenario"]


def test_out_must_be_a_folder_and_is_checked_before_the_work(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main([*SMALL, "--out", str(tmp_path / "file")]) == 2
    assert "--out must be a folder" in capsys.readouterr().err


def test_a_call_from_python_leaves_warnings_as_they_were():
    before = warnings.showwarning
    assert main(["cite"]) == 0 and main(["report", "nowhere"]) == 2
    assert warnings.showwarning is before


def interrupt(*_, **__):
    raise KeyboardInterrupt


def test_interrupts_are_the_business_of_the_main_thread():
    """Another thread that ends later does not put its own answers back."""
    hooks = []

    def elsewhere():
        with interrupts.answered(command=False):
            hooks.append(sys.unraisablehook)
            entered.set()
            left.wait(10)

    entered, left = threading.Event(), threading.Event()
    thread = threading.Thread(target=elsewhere)
    before = sys.unraisablehook
    with interrupts.answered(command=False):
        mine = sys.unraisablehook
        thread.start()
        entered.wait(10)
    left.set()
    thread.join()
    assert hooks == [mine] and sys.unraisablehook is before


@pytest.mark.parametrize(
    ("where", "left"),
    [("results.np.savez", set()), ("plots.outputs", {"arrays.npz", "report.json"})],
)
def test_interruption_exits_with_130_and_leaves_no_half_result(
    where, left, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(f"perturbkernel.report.{where}", interrupt)
    assert main([*SMALL, "--out", str(tmp_path)]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == left
    monkeypatch.setattr("perturbkernel.report.results.figures", lambda _: {})
    assert not left or main(["report", str(tmp_path)]) == 0


def test_a_failed_computation_exits_with_1(monkeypatch, capsys):
    def fail(*_, **__):
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr("perturbkernel.cli.run.experiment.learn_from_perturbations", fail)
    assert main(SMALL) == 1
    assert capsys.readouterr().err == "perturbkernel: failed: RuntimeError: out of memory\n"


@pytest.mark.parametrize("module", ["perturbkernel", "perturbkernel.cli"])
def test_the_command_is_a_module_too(module):
    command = [sys.executable, "-m", module, "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"perturbkernel {__version__}\n"


def test_without_arguments_it_prints_the_help(capsys):
    assert main([]) == 0
    page = capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0 and capsys.readouterr().out == page
    for command in ("run", "verify", "reproduce", "bench", "report"):
        assert re.search(rf"^ +{command}\b", page, re.M), command


def test_help_fits_80_columns_and_explains_every_option(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    parser = build_parser()
    parser.add_all_options()
    for name, command in {"": parser, **parser.commands}.items():
        page = command.format_help()
        assert max(map(len, page.splitlines())) <= 80, name
        for action in command._actions:
            assert action.help or action.dest == "command", (name, action.dest)
            valued = action.nargs != 0 and action.option_strings and action.default is not None
            assert not valued or "default" in str(action.help), (name, action.dest)


def test_a_subcommand_explains_its_options(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["run", "--help"])
    assert ended.value.code == 0
    page = capsys.readouterr().out
    for word in (
        "--data",
        "--scenario",
        "--size",
        "--loss",
        "--out",
        "--precision",
        "exit status",
        "examples:",
    ):
        assert word in page


def test_report_json_is_strict_json(result):
    json.loads(
        (result / "report.json").read_text(),
        parse_constant=lambda name: pytest.fail(f"{name} is not JSON"),
    )
