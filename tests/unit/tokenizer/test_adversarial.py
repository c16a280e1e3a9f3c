"""The adversarial loss: hand-worked numbers, who gets which gradient.

That a discriminator is resumed bit for bit is tested with its stage, which saves its optimizer.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tessella.errors import ConfigError
from tessella.tokenizer.adversarial import (
    AdversarialLoss,
    AdversarialSettings,
    compute_hinge_loss,
    compute_lecam_loss,
)
from two_processes import connect

CPU = torch.device("cpu")
SIZE = 12


def create(image_size: int = SIZE, seed: int = 0, **changes: object) -> AdversarialLoss:
    """A small discriminator at work."""
    small = {"weight": 0.8, "width": 16, "layers": 2, "start_images": 0, "warmup_images": 0}
    return AdversarialLoss(
        AdversarialSettings.model_validate(small | changes), image_size, CPU, seed
    )


def batch(seed: int, size: int = 4) -> tuple[Tensor, Tensor]:
    """Reconstructions and images that differ."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(2, size, 3, SIZE, SIZE, generator=generator) * 2 - 1
    return images[0], images[1]


def decoder() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 3, 3, padding=1))


# Losses by hand.


@pytest.mark.parametrize(
    ("real", "fake", "expected"),
    [
        ([0.0, 0.0], [0.0, 0.0], 2.0),  # knows nothing
        ([1.0, 5.0], [-1.0, -9.0], 0.0),  # sure and right: no more is asked
        ([-1.0, -1.0], [0.0, 0.0], 3.0),
        ([0.5, 3.0], [1.0, -2.0], 0.25 + 1.0),
    ],
)
def test_hinge_by_hand(real: list[float], fake: list[float], expected: float) -> None:
    loss = compute_hinge_loss(torch.tensor(real), torch.tensor(fake))
    assert loss.item() == pytest.approx(expected)


def test_lecam_by_hand() -> None:
    """Anchors 2 (real) and -1 (fake).

    Real 1 is 2 above the fake's anchor, -3 is below: (4 + 0) / 2 = 2. Fake 0 is 2 below the
    real's anchor, 4 is above: 2 again. The gradients are 2 · 2 / 2 each.
    """
    real = torch.tensor([1.0, -3.0], requires_grad=True)
    fake = torch.tensor([0.0, 4.0], requires_grad=True)
    loss = compute_lecam_loss(real, fake, torch.tensor([2.0, -1.0]))
    assert loss.item() == pytest.approx(4.0)
    loss.backward()
    assert real.grad.tolist() == [2.0, 0.0]
    assert fake.grad.tolist() == [-2.0, 0.0]


def test_lecam_s_anchors_are_means_weighted_towards_now() -> None:
    """Of the logits of steps 1 to 3, weighted 0.99², 0.99 and 1, without a bias towards 0."""
    loss = create(lecam_weight=0.1)
    seen = []
    for seed in range(3):
        metrics = loss.step(*batch(seed))
        seen.append(torch.stack([metrics["logits_real"], metrics["logits_fake"]]))
        shares = torch.tensor([0.99**2, 0.99, 1.0])[2 - seed :, None]
        expected = (torch.stack(seen) * shares).sum(0) / shares.sum()
        torch.testing.assert_close(loss.state_dict()["anchors"], expected)


def test_lecam_is_in_the_step() -> None:
    """At the first step the anchors are the batch's own means."""
    plain, regularised = create(), create(lecam_weight=0.5)
    reconstruction, image = batch(0)
    with torch.no_grad():
        real, fake = plain.network(image), plain.network(reconstruction)
    anchors = torch.stack([real.mean(), fake.mean()])
    without = plain.step(reconstruction, image)["discriminator_loss"]
    given = regularised.step(reconstruction, image)["discriminator_loss"]
    torch.testing.assert_close(given - without, 0.5 * compute_lecam_loss(real, fake, anchors))
    torch.testing.assert_close(without, compute_hinge_loss(real, fake))
    assert given > without


# The tokenizer's side.


class Scale(nn.Module):
    """A discriminator whose logits are the pixels times a number."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, image: Tensor) -> Tensor:
        return self.factor * image


@pytest.mark.parametrize(
    ("factor", "limit", "adaptive_weight"),
    [
        (0.5, 100.0, 8 / (1 + 1e-4)),
        (-4.0, 100.0, 8 / (8 + 1e-4)),
        (0.5, 3.0, 3.0),  # limited
        (0.0, 100.0, 100.0),  # a discriminator with nothing to say
    ],
)
def test_adaptive_weight_by_hand(factor: float, limit: float, adaptive_weight: float) -> None:
    """A decoder of one weight 1.5, whose features are all 2: its pictures are all 3.

    With the mean of (pixel - 1)² to minimise, the gradient is 2 · (3 - 1) · 2 = 8. The
    adversarial loss is -factor · 3, its gradient -factor · 2.
    """
    loss = create(max_adaptive_weight=limit)
    loss.network = Scale(factor)
    last_layer = nn.Parameter(torch.tensor([1.5]))
    reconstruction = last_layer * torch.full((2, 3, SIZE, SIZE), 2.0)
    given = loss.judge(
        reconstruction, reconstruction, (reconstruction - 1).square().mean(), last_layer
    )
    assert given["adaptive_weight"].item() == pytest.approx(adaptive_weight)
    assert not given["adaptive_weight"].requires_grad
    assert given["adversarial_loss"].item() == pytest.approx(0.8 * adaptive_weight * -factor * 3)
    given["adversarial_loss"].backward()
    assert last_layer.grad.item() == pytest.approx(0.8 * adaptive_weight * -factor * 2)


@pytest.mark.parametrize("augment", [False, True])
def test_the_gradient_is_that_of_the_whole_way(augment: bool) -> None:
    """Against one graph through decoder and discriminator, for every weight of the decoder."""
    loss, network = create(augment=augment), decoder()
    features, image = torch.randn(2, 4, SIZE, SIZE), batch(0, 2)[1]

    reconstruction = network(features)
    error = (reconstruction - image).square().mean()
    torch.manual_seed(5)
    given = loss.judge(reconstruction, image, error, network[2].weight)
    mine = torch.autograd.grad(given["adversarial_loss"], list(network.parameters()))

    reconstruction = network(features)
    error = (reconstruction - image).square().mean()
    torch.manual_seed(5)
    adversarial = -loss._compute_logits(reconstruction).mean()
    last = network[2].weight
    wanted = torch.autograd.grad(error, last, retain_graph=True)[0].norm()
    had = torch.autograd.grad(adversarial, last, retain_graph=True)[0].norm()
    expected = 0.8 * wanted / (had + 1e-4) * adversarial
    theirs = torch.autograd.grad(expected, list(network.parameters()))

    torch.testing.assert_close(given["adversarial_loss"], expected)
    torch.testing.assert_close(mine, theirs)


def test_following_it_fools_the_discriminator() -> None:
    loss, network = create(), decoder()
    features, image = torch.randn(2, 4, SIZE, SIZE), batch(0, 2)[1]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    values = []
    for _ in range(5):
        reconstruction = network(features)
        error = (reconstruction - image).square().mean()
        values.append(-loss.network(reconstruction).mean().item())
        optimizer.zero_grad()
        loss.judge(reconstruction, image, error, network[2].weight)["adversarial_loss"].backward()
        optimizer.step()
    assert values == sorted(values, reverse=True)
    assert values[0] - values[-1] > 1e-4


def test_neither_leaves_a_gradient_in_the_other() -> None:
    loss, network = create(lecam_weight=0.1, augment=True), decoder()
    before = {name: tensor.clone() for name, tensor in loss.state_dict().items()}
    reconstruction = network(torch.randn(2, 4, SIZE, SIZE))
    image = batch(0, 2)[1]
    error = (reconstruction - image).square().mean()
    given = loss.judge(reconstruction, image, error, network[2].weight)
    assert all(parameter.grad is None for parameter in network.parameters())
    (error + given["adversarial_loss"]).backward()
    assert all(parameter.grad is None for parameter in loss.network.parameters())
    assert all(parameter.grad is not None for parameter in network.parameters())
    for name, tensor in loss.state_dict().items():
        assert torch.equal(tensor, before[name]) or name == "has_counted", name

    weights = [parameter.detach().clone() for parameter in network.parameters()]
    network.zero_grad()
    loss.step(network(torch.randn(2, 4, SIZE, SIZE)), image)
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(map(torch.equal, network.parameters(), weights))
    for name, tensor in loss.network.state_dict().items():
        assert not torch.equal(tensor, before[f"network.{name}"]), name


def test_the_discriminator_may_step_before_the_tokenizer_s_backward_pass() -> None:
    """Its weights change in place, which autograd refuses in a graph that still needs them."""
    loss, network = create(), decoder()
    reconstruction, image = network(torch.randn(2, 4, SIZE, SIZE)), batch(0, 2)[1]
    error = (reconstruction - image).square().mean()
    given = loss.judge(reconstruction, image, error, network[2].weight)
    expected = torch.autograd.grad(given["adversarial_loss"], network[0].weight, retain_graph=True)[
        0
    ]
    loss.step(reconstruction, image)
    given["adversarial_loss"].backward()
    assert torch.equal(network[0].weight.grad, expected)


@pytest.mark.parametrize("in_bf16", [False, True])
def test_it_judges_and_learns_in_the_tokenizer_s_precision(in_bf16: bool) -> None:
    """The tokenizer's autocast is left before the discriminator takes its own step."""
    dtype = torch.bfloat16 if in_bf16 else torch.float32
    computed = []
    loss, network = create(), decoder()
    features, image = torch.randn(2, 4, SIZE, SIZE), batch(0, 2)[1]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=in_bf16):
        reconstruction = network(features)
        error = (reconstruction.float() - image).square().mean()
        given = loss.judge(reconstruction, image, error, network[2].weight)
    assert reconstruction.dtype == dtype
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=in_bf16):
        expected = -loss.network(reconstruction.detach().float()).float().mean()
    torch.testing.assert_close(given["adversarial_loss"], 0.8 * given["adaptive_weight"] * expected)
    given["adversarial_loss"].backward()
    assert network[0].weight.grad.abs().sum() > 0
    loss.network.register_forward_hook(lambda *hooked: computed.append(hooked[-1].dtype))
    assert loss.step(reconstruction, image)["logits_fake"].dtype == torch.float32
    assert computed == [dtype]
    assert {parameter.dtype for parameter in loss.network.parameters()} == {torch.float32}


# The discriminator's side.


@pytest.mark.parametrize(
    ("steps", "changes"), [(30, {}), (30, {"lecam_weight": 0.01}), (60, {"augment": True})]
)
def test_it_learns_to_tell_two_kinds_of_images(steps: int, changes: dict[str, Any]) -> None:
    """Smooth reconstructions from noisy images: from 2, knowing nothing, to under 1."""
    loss = create(learning_rate=2e-3, **changes)
    torch.manual_seed(0)
    losses = []
    for _ in range(steps):
        smooth = (torch.rand(8, 3, 1, 1) * 2 - 1).expand(8, 3, SIZE, SIZE)
        noisy = torch.rand(8, 3, SIZE, SIZE) * 2 - 1
        metrics = loss.step(smooth, noisy)
        losses.append(metrics["discriminator_loss"].item())
    assert losses[0] == pytest.approx(2.0, abs=0.5)
    assert sum(losses[-10:]) / 10 < 1.0
    assert metrics["logits_real"] > metrics["logits_fake"]


def test_when_it_learns_and_counts() -> None:
    loss = create(start_images=100, warmup_images=50)
    assert loss.settings.counts_from_images == 150
    learning, counting = [], []
    last_layer = nn.Parameter(torch.ones(1))
    for images_seen in (0, 99, 100, 149, 150):
        loss.before_step(images_seen)
        reconstruction, image = last_layer * batch(0)[0], batch(0)[1]
        error = reconstruction.square().mean()
        counting.append(bool(loss.judge(reconstruction, image, error, last_layer)))
        learning.append(bool(loss.after_step()))
    assert learning == [False, False, True, True, True]
    assert counting == [False, False, False, False, True]


def test_a_step_judges_then_learns_from_the_same_batch() -> None:
    """Before it counts it only learns; before it learns it does nothing."""
    loss, twin, network = create(start_images=100, warmup_images=50), create(), decoder()
    features, image = torch.randn(2, 4, SIZE, SIZE), batch(0, 2)[1]
    for images_seen in (0, 100, 150):
        reconstruction = network(features)
        error = (reconstruction - image).square().mean()
        loss.before_step(images_seen)
        generator = loss.judge(reconstruction, image, error, network[2].weight)
        assert bool(generator) == (images_seen == 150)
        if generator:
            expected = twin.judge(reconstruction, image, error, network[2].weight)
            assert torch.equal(generator["adversarial_loss"], expected["adversarial_loss"])
        learned = loss.after_step()
        assert loss.after_step() == {}
        if images_seen < 100:
            assert learned == {}
        else:
            assert learned == twin.step(reconstruction, image)


def test_a_large_gradient_is_shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    """To length 1, and no other is: what the optimizer finds, against the loss's gradient."""
    found: list[Tensor] = []
    for scale in (1e3, 1e-3):
        loss = create()
        with torch.no_grad():
            loss.network.last.weight.mul_(scale)
        reconstruction, image = batch(0)
        hinge = compute_hinge_loss(loss.network(image), loss.network(reconstruction))
        parameters = list(loss.network.parameters())
        raw = torch.cat([g.flatten() for g in torch.autograd.grad(hinge, parameters)])

        def note(parameters: list[Tensor] = parameters) -> None:
            found.append(torch.cat([p.grad.flatten() for p in parameters]))

        monkeypatch.setattr(loss.optimizer, "step", note)
        loss.step(reconstruction, image)
        length = raw.norm().item()
        torch.testing.assert_close(found[-1], raw / max(1.0, length), atol=1e-5, rtol=1e-3)
    assert found[0].norm().item() == pytest.approx(1.0, abs=1e-3)


# Its weight is lowered when reconstructions get worse.


def count(loss: AdversarialLoss) -> Tensor:
    """Asks for a loss, as the tokenizer does while the discriminator counts."""
    last_layer = nn.Parameter(torch.ones(1))
    reconstruction = last_layer * batch(0)[0]
    error = reconstruction.square().mean()
    return loss.judge(reconstruction, reconstruction, error, last_layer)["adversarial_loss"]


def test_the_scale_is_halved_when_reconstructions_get_worse() -> None:
    loss = create(error_tolerance=0.1)
    for error in (2.0, 1.0, 3.0):  # before it counts: nothing is its fault
        assert loss.note_validation(error) is None
    before = count(loss).item()
    assert loss.note_validation(1.09) is None  # within the tolerance of 1.0
    assert loss.note_validation(1.11) == 0.5
    assert count(loss).item() == pytest.approx(0.5 * before)
    assert loss.note_validation(0.5) is None  # the best from now on
    assert loss.note_validation(0.54) is None
    assert loss.note_validation(0.56) == 0.25
    assert loss.note_validation(float("nan")) is None
    assert loss.note_validation(0.56) == 0.125


def test_without_an_earlier_validation_the_first_is_what_others_are_compared_with() -> None:
    loss = create()
    count(loss)
    assert loss.note_validation(1.0) is None
    assert loss.note_validation(1.2) == 0.5


def test_a_scale_that_keeps_falling_is_left_off() -> None:
    loss = create()
    loss.note_validation(1.0)
    count(loss)
    scales = [loss.note_validation(2.0) for _ in range(8)]
    assert scales == [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 0.0, None]
    loss.before_step(10**9)
    image, error = nn.Parameter(torch.ones(1)) * batch(0)[0], torch.ones(())
    assert loss.judge(image, image, error, image) == {}
    before = {name: tensor.clone() for name, tensor in loss.state_dict().items()}
    assert loss.step(*batch(0)) == {}
    assert all(torch.equal(tensor, before[name]) for name, tensor in loss.state_dict().items())


# State.


def test_a_state_that_was_loaded_is_a_copy() -> None:
    first, second = create(lecam_weight=0.3), create(lecam_weight=0.3)
    first.step(*batch(0))
    state = first.state_dict()
    before = {name: tensor.clone() for name, tensor in state.items()}
    second.load_state_dict(state)
    second.step(*batch(1))
    assert all(torch.equal(state[name], before[name]) for name in state)


def test_a_network_that_holds_it_has_none_of_it_as_a_part() -> None:
    holder = nn.Linear(2, 2)
    holder.adversarial = create()
    assert len(list(holder.parameters())) == 2
    assert list(holder.state_dict()) == ["weight", "bias"]
    assert list(holder.children()) == []


def test_the_seed_alone_makes_the_start() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = create().network.last.weight
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(create().network.last.weight, first)
    assert not torch.equal(create(seed=1).network.last.weight, first)


# Several processes.


def test_two_halves_on_two_processes_are_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = [create(lecam_weight=0.3) for _ in range(2)]

    def work(rank: int) -> None:
        for seed in range(3):
            half = [images[2 * rank : 2 * rank + 2] for images in batch(seed)]
            losses[rank].step(*half)

    connect(monkeypatch).run(work)
    monkeypatch.undo()
    whole = create(lecam_weight=0.3)
    for seed in range(3):
        whole.step(*batch(seed))
    for name, expected in whole.state_dict().items():
        first, second = (loss.state_dict()[name] for loss in losses)
        assert torch.equal(first, second), name
        if not name.startswith("network"):  # Adam makes much of rounding
            torch.testing.assert_close(first, expected, atol=1e-5, rtol=1e-3)
    networks = [loss.network.parameters() for loss in (whole, *losses)]
    for parameters in zip(*networks, strict=True):
        states = [
            loss.optimizer.state[parameter]
            for loss, parameter in zip((whole, *losses), parameters, strict=True)
        ]
        for key, expected in states[0].items():
            assert torch.equal(states[1][key], states[2][key]), key
            torch.testing.assert_close(states[1][key], expected, atol=1e-5, rtol=1e-3)


# Settings.


def test_pictures_that_are_too_small() -> None:
    create(image_size=12)
    expected = (
        r"discriminator of 3 layers needs pictures of at least 24×24 pixels: `16`\. "
        r"Lower its `layers`, or set its `weight` to 0"
    )
    with pytest.raises(ConfigError, match=expected):
        create(image_size=16, layers=3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weight", -1.0),
        ("start_images", -1),
        ("warmup_images", -1),
        ("learning_rate", 0.0),
        ("width", 20),
        ("layers", 0),
        ("max_adaptive_weight", 0.0),
        ("lecam_weight", -0.1),
        ("error_tolerance", -0.1),
    ],
)
def test_settings_that_cannot_be(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"Setting `{name}`: got: `{value}`"):
        AdversarialSettings().replace(**{name: value})
