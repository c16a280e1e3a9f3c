"""Benchmarks that choose defaults: their quick runs, and their conclusions by hand."""

import importlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tessella.data.cache import CaptionedImages
from tessella.evaluation.features import FeatureExtractor
from tessella.text import TextSettings, TextTokenizer
from tessella.training.callbacks import TrainingEvent
from tessella.transformer import has_int8

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def scripts() -> Iterator[Any]:
    """Imports a script as it imports the others: from its own folder."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module
        for name in set(sys.modules) - before:
            if not name.startswith("tessella") and (BENCHMARKS / f"{name}.py").exists():
                del sys.modules[name]


def run(script: Any, *words: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Runs a script's quick mode and reads the record in its last line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["script", "--quick", *words])
        script.main()
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(record) >= {"what", "environment", "config", "results"}
    results: dict[str, Any] = record["results"]
    return results


@pytest.mark.parametrize("name", ["serving_replicas", "studio"])
def test_what_needs_a_missing_program_is_skipped_only_where_all_are_run(
    scripts: Any, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = scripts(name)
    monkeypatch.setattr(script.shutil, "which", lambda _: None)
    monkeypatch.setattr(sys, "argv", ["script", "--quick"])
    script.main()
    said, record = capsys.readouterr().out.splitlines()
    assert said.startswith("Skipped: ")
    assert json.loads(record)["results"] == {}
    monkeypatch.setattr(sys, "argv", ["script"])
    with pytest.raises(SystemExit, match=r"^Cannot measure: .+ is here\.$"):
        script.main()


def test_what_a_precision_of_painting_costs(
    scripts: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    results = run(scripts("precision"), "--part", "painting", capsys=capsys)
    lowered = {"bf16", "int8"} if has_int8() else {"bf16"}
    [width] = results["painting"].values()
    assert set(width["layer"]) == {f"{name}_batch_{batch}" for name in lowered for batch in (1, 16)}
    assert width["chosen"] in {"fp32", *lowered}
    pictures = results["pictures"]
    assert set(pictures) == {
        "scenes_fp32", *(f"{m}_{p}" for m in ("scenes", "stickers") for p in lowered)
    }  # fmt: skip
    for name in lowered:
        assert 0 < pictures[f"scenes_{name}"]["divergence"] < 0.01
        assert pictures[f"scenes_{name}"]["same_codes"] > 0.5
        assert pictures[f"scenes_{name}"]["seen"]["share"] > 0.4


def test_whether_auto_is_right_by_hand(scripts: Any) -> None:
    script = scripts("precision")
    speedups = {"bf16_batch_1": 1.9, "bf16_batch_16": 1.5, "int8_batch_1": 3.0, "int8_batch_16": 0}
    slower = script.find_slower(speedups)
    assert slower == {"bf16": 1.5, "int8": 0}
    spread = script.Spread.of
    pictures = {n: script.Ratio(spread([s]), spread([1]), spread([s])) for n, s in speedups.items()}
    assert script.is_right("bf16", pictures)
    assert not script.is_right("fp32", pictures)
    assert not script.is_right("int8", pictures)


def test_quality_by_steps(scripts: Any, capsys: pytest.CaptureFixture[str]) -> None:
    results = run(scripts("steps"), capsys=capsys)
    assert set(results) == {"2_steps", "8_steps", "smallest"}
    for name in ("seen", "held_out"):
        assert results["8_steps"][name]["less"] == {"mean": 0, "low": 0, "high": 0}
        assert 0 <= results["2_steps"][name]["share"] <= 1


def test_a_loss_with_more_steps_counts_for_fewer(scripts: Any) -> None:
    find = scripts("steps").find_smallest
    assert find([4, 8, 16], set()) == 4
    assert find([4, 8, 16], {8}) == 16
    assert find([4, 8, 16], {4}) == 8


def test_a_loss_is_measured_pair_by_pair(scripts: Any) -> None:
    """Of 100 pictures 10 are worse and 2 better: 0.08 ± 1.96 · √(0.12 − 0.08²) / 10."""
    most, fewer = np.ones(100, dtype=bool), np.ones(100, dtype=bool)
    most[:2] = False
    fewer[2:12] = False
    less = scripts("steps").compare(most, fewer)
    half = 1.96 * (0.12 - 0.08**2) ** 0.5 / 10
    assert less == pytest.approx({"mean": 0.08, "low": 0.08 - half, "high": 0.08 + half})


PEERS = ("llamagen", "maskgit", "dalle", "diffusion")


@pytest.mark.slow
def test_quality_per_minute_of_all(scripts: Any, capsys: pytest.CaptureFixture[str]) -> None:
    results = run(scripts("quality_per_minute"), capsys=capsys)
    assert set(results) == {"tessella", "tessella-examples", *PEERS}
    for name, result in results.items():
        assert result["training"]["seconds"] > 0
        assert all(count > 0 for count in result["parameters"].values())
        assert set(result["painted"]) == ({"published", "gentle"} if name in PEERS else {"own"})
        for painted in result["painted"].values():
            assert painted["seconds_per_picture"] > 0
            for features in result["real"]:
                assert {"right_subject", "right_style", "both", "fid", "kid", "copies"} == set(
                    painted[features]
                )
        assert ("tokenizer" in result) == (name != "diffusion")


@pytest.mark.slow
def test_a_peer_is_judged_from_its_files_again(
    scripts: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trained once: a second call finds weights and codes, and measures the same pictures."""
    script = scripts("quality_per_minute")
    words = ["--contenders", "dalle", "--out", str(tmp_path)]
    first = run(script, *words, capsys=capsys)["dalle"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "learn", None)
        second = run(script, *words, capsys=capsys)["dalle"]
    with pytest.raises(SystemExit, match="choose another --out"):
        run(script, *words, "--seed", "1", capsys=capsys)
    assert (tmp_path / "sheet.png").stat().st_size > 1000
    for way in ("published", "gentle"):
        first["painted"][way].pop("seconds_per_picture")
        second["painted"][way].pop("seconds_per_picture")
    assert first == second
    for right in first["real"].values():  # the real pictures are their own nearest
        assert right["both"]["share"] == 1
        assert right["fid"] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_learns_and_paints(scripts: Any, name: str) -> None:
    """Padding means nothing to it; a small step on one batch lowers its loss."""
    peers = scripts("quality_peers")
    torch.manual_seed(0)
    generator = peers.PEERS[name].generator(40)
    text = torch.zeros(4, peers.MAX_TEXT_TOKENS, dtype=torch.int64)  # padded in the middle
    text[:, :3] = torch.tensor([[1, 7, 8], [1, 9, 0]]).repeat(2, 1)
    text[:, -1] = 2
    pixels = name == "diffusion"
    target = torch.rand(4, 3, 64, 64) if pixels else torch.randint(peers.CODEBOOK_SIZE, (4, 64))

    def measure() -> torch.Tensor:
        torch.manual_seed(1)
        loss: torch.Tensor = generator.compute_loss(text, target)
        return loss

    first = measure()
    if name != "diffusion":
        assert first.item() == pytest.approx(np.log(peers.CODEBOOK_SIZE), rel=0.25)
    first.backward()
    assert all(p.grad is not None for p in generator.parameters() if p.requires_grad)
    with torch.no_grad():
        generator.words.weight[peers.PAD] += 100
        assert measure().item() == pytest.approx(first.item(), rel=1e-4)
        for parameter in generator.parameters():
            parameter -= 0.01 * parameter.grad / (parameter.grad.norm() + 1e-6)
        assert measure() < first
        torch.manual_seed(2)
        made = generator.eval().paint(
            text, {"guidance_scale": 2.0, "steps": 2, "temperature": 1.0, "top_k": 50}
        )
    assert made.shape == ((2, 3, 64, 64) if pixels else (2, 64))
    if not pixels:
        assert 0 <= made.min() <= made.max() < peers.CODEBOOK_SIZE


@pytest.mark.parametrize("name", ["llamagen", "maskgit", "dalle"])
def test_a_peer_s_tokenizer_learns(scripts: Any, name: str) -> None:
    peers = scripts("quality_peers")
    torch.manual_seed(0)
    tokenizer = peers.PEERS[name].tokenizer()
    image = torch.rand(4, 3, 64, 64) * 2 - 1
    loss = tokenizer.compute_loss(image, 0.5)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None for p in tokenizer.parameters() if p.requires_grad)
    with torch.inference_mode():
        codes = tokenizer.eval().encode(image)
        assert codes.shape == (4, 64)
        assert tokenizer.decode(codes).shape == image.shape


def test_a_peer_s_codes_do_not_see_what_follows(scripts: Any) -> None:
    """Of 64 codes the loss of the first 40 stays when later ones change."""
    peers = scripts("quality_peers")
    torch.manual_seed(0)
    for name in ("llamagen", "dalle"):
        generator = peers.PEERS[name].generator(40).eval()
        text = torch.full((1, peers.MAX_TEXT_TOKENS), 7)
        codes = torch.randint(peers.CODEBOOK_SIZE, (1, 64))
        other = codes.clone()
        other[:, 40:] = (other[:, 40:] + 1) % peers.CODEBOOK_SIZE
        seen: list[torch.Tensor] = []

        def keep(logits: torch.Tensor, *_: Any, seen: Any = seen, **__: Any) -> torch.Tensor:
            seen.append(logits)
            return logits.sum()

        with pytest.MonkeyPatch.context() as patch, torch.no_grad():
            patch.setattr(peers.functional, "cross_entropy", keep)
            for one in (codes, other):
                generator.compute_loss(text, one)
        first, second = seen[len(seen) // 2 - 1], seen[-1]  # the last of each call are the codes'
        assert torch.allclose(first[:41], second[:41], atol=1e-5)
        assert not torch.allclose(first[41:], second[41:], atol=1e-5)


def test_guidance_by_hand(scripts: Any) -> None:
    predicted = torch.tensor([[3.0], [1.0]])
    assert scripts("quality_peers").guide(predicted, {"guidance_scale": 2.0}).tolist() == [[5.0]]


def test_a_stage_ends_when_its_seconds_are_spent(
    scripts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that ticks a second a step, ten seconds are ten steps."""
    script = scripts("quality_training")
    ticks = iter(range(100))
    monkeypatch.setattr(script.time, "process_time", lambda: float(next(ticks)))
    progress = []

    def compute_loss(network: torch.nn.Linear, start: int, done: float) -> torch.Tensor:
        progress.append((start, done))
        return (network(torch.ones(1, 1)) - 3).square().sum()

    network, optimizer = torch.nn.Linear(1, 1), script.Optimizer(0.3, 8)
    average, training = script.learn(
        network, compute_loss, optimizer, seconds=10.0, precision="fp32", seed=0
    )
    assert progress == [(8 * step, step / 10) for step in range(10)]
    assert (training.images, training.steps, training.seconds) == (80, 10, 10.0)
    assert abs(average(torch.ones(1, 1)).item() - 3) < 3
    assert not average.weight.requires_grad


def test_our_seconds_by_hand(scripts: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Steps end at 1, 3, 5 and 20, 21, 22; stage 1 was evaluated at 9: 6, 3 and 11 seconds."""
    script = scripts("quality_ours")
    clock = script.Clock(tmp_path / "seconds.json")
    now = iter([1.0, 3.0, 5.0, 9.0, 20.0, 21.0, 22.0])
    monkeypatch.setattr(script.time, "process_time", lambda: next(now))
    first, second = (TrainingEvent(tmp_path, stage, 0, 0) for stage in script.STAGES)
    for _ in range(3):
        clock.on_step(first)
    clock.on_evaluate(first)
    for _ in range(3):
        clock.on_step(second)
    spent = {"tokenizer": 6.0, "transformer": 3.0, "between": 11.0}
    assert clock.seconds == spent
    clock.on_save(second)
    assert script.Clock(tmp_path / "seconds.json").seconds == spent


def test_results_become_a_table(scripts: Any) -> None:
    measured = {"right_kind": {"share": 0.5}, "fid": 12.34, "kid": 5.0}
    record = {
        "config": {"contender": "dalle", "minutes": 3.0},
        "results": {
            "real": {"squeezenet-fire9": {}},
            "parameters": {"tokenizer": 400_000, "generator": 1_000_000},
            "tokenizer": {"psnr": 20.0},
            "painted": {"gentle": {"seconds_per_picture": 0.05, "squeezenet-fire9": measured}},
        },
    }
    assert scripts("quality_per_minute").make_table([record]).splitlines() == [
        "| contender | minutes | weights, M | tokenizer, dB | kind | FID | KID | ms a picture |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| dalle, gentle | 3 | 1.4 | 20.0 | 50% | 12.34 | 5 | 50 |",
    ]


class Corners:
    """Looks at the mean colours of a picture's quarters, and counts how often."""

    calls = 0

    def to(self, _: Any) -> "Corners":
        return self

    def features(self, image: torch.Tensor, layers: tuple[str, ...]) -> dict[str, torch.Tensor]:
        self.calls += 1
        means = torch.nn.functional.adaptive_avg_pool2d(image, 2)
        return dict.fromkeys(layers, means.flatten(1))


def test_pictures_are_judged_by_their_captions(
    scripts: Any, scenes: Mapping[str, CaptionedImages], tmp_path: Path
) -> None:
    script, networks = scripts("quality_judge"), []
    for _ in range(2):  # the second finds the features that the first has kept
        network = Corners()
        extractor = FeatureExtractor("corners", network, "2x2")  # type: ignore[arg-type]
        before = network.calls
        remembering = script.RememberingExtractor(extractor, tmp_path)
        judge = script.Judge.of_captions(scenes["validation"], scenes["train"], [remembering])
        pixels = judge.heldout.images.pixels
        measured = judge.measure(pixels)["corners"]
        networks.append(network.calls - before)
        assert set(measured) == {"right_kind", "fid", "kid", "copies"}
        assert measured["fid"] == pytest.approx(0, abs=1e-6)
    assert networks[0] > 0
    assert networks[1] == 0
    darker = np.where(pixels >= 10, pixels - 10, pixels + 10)
    kept = judge.measure_kept(darker)
    assert kept["psnr"] == pytest.approx(20 * np.log10(255 / 10))
    assert "copies" not in kept["corners"]


def test_captions_are_padded_before_their_end(
    scripts: Any, scenes: Mapping[str, CaptionedImages]
) -> None:
    script, images = scripts("quality_training"), scenes["train"]
    text = TextTokenizer.train(images.all_captions(), TextSettings())
    material = script.Material(images, text, seed=0)
    begin, end, longest = text.begin_id, text.end_id, script.MAX_TEXT_TOKENS
    short, long = material.encode(["a circle", "a circle " * longest]).tolist()
    [words] = text.encode(["a circle"]).tolist()
    assert short == [*words[:-1], *[text.pad_id] * (longest - len(words)), end]
    assert (long[0], long[-1], len(long)) == (begin, end, longest)
    assert text.pad_id not in long
    drawn = material.draw_captions(np.zeros(200, dtype=np.int64), 0)
    assert 5 <= drawn.count("") <= 40  # one in ten
    assert drawn.count(images.captions(0)[0]) > 100
