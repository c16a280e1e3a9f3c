"""`sharding = "full"`: weights, gradients, average and optimizer spread over all processes.

torch's FSDP2 does it in place. Each matrix inside the network that Muon trains is a unit of its
own: gathered from all processes when its layer is called, let go afterwards, gathered once more for
the backward pass, its gradient then added up over the processes and spread again. A layer as a
whole cannot be the unit, since its parts are called apart (`Layer.project_kv`). What is left
(embeddings, norms, first and last layers) is one more unit, gathered for the whole step. A
quantizer stays whole in every process: it changes its codebook while a step runs, and that would
be lost with the gathered copy.

Source: arXiv:2304.11277 (FSDP); torch.distributed.fsdp.fully_shard.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.torch_version import TorchVersion

from tessella.batch import average_over_batch, count_processes
from tessella.errors import CheckpointError, ConfigError
from tessella.precision import Precision
from tessella.training import shard_files
from tessella.training.shards import replace_parameters
from tessella.training.stage import N, Stage, StepLoss

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

_OLDEST_TORCH = "2.11"


def require_sharding() -> None:
    """Refuses to shard with a torch that cannot.

    Raises:
        ConfigError: torch is too old, or was built without `torch.distributed`.
    """
    if not torch.distributed.is_available():
        raise ConfigError(
            f"This torch was built for one process: `{torch.__version__}`. Install another build, "
            "or set …_training.sharding=none."
        )
    if TorchVersion(torch.__version__) < TorchVersion(_OLDEST_TORCH):
        raise ConfigError(
            f"…_training.sharding=full needs torch {_OLDEST_TORCH} or newer: "
            f"`{torch.__version__}`. Install a newer one, or set it to none."
        )


def shard_stage(
    stage: Stage[N], device: torch.device, precision: Precision
) -> tuple[Callable[..., StepLoss], N]:
    """Spreads a stage's network over all processes, in place; every process must call it.

    Args:
        stage: its weights are the same in every process. Its network need not be on the device:
            its parts go there one by one.
        device: of this process.
        precision: of the run. In bf16 matrices are gathered as such; autocast rounds them anyway.

    Returns:
        What computes the loss of this process's part of a batch, in place of the stage's loss
        module; and the network's average, spread alike.
    """
    from torch.distributed.device_mesh import init_device_mesh

    network = stage.network
    mesh = init_device_mesh(device.type, (count_processes(),))
    empty = {id(one): nn.Parameter(torch.empty(0)) for one in network.parameters()}
    average = copy.deepcopy(network, empty).eval().to(device)
    replicated = [one for module in stage.replicated for one in module.parameters()]
    # Of networks that only judge, such as a perceptual loss's, nothing is spread either.
    whole = {*stage.loss_module.parameters()} - {*network.parameters()} | {*replicated}
    for parameter in stage.loss_module.parameters():
        # FSDP takes nothing else; convolutions run in the layout of their input all the same.
        value = parameter.data.contiguous()
        parameter.data = value.to(device) if parameter in whole else value
    names = {one: name for name, one in network.named_parameters()}
    hidden_names = [names[one] for one in stage.hidden_matrices]
    root = _Loss(stage.loss_module)
    _spread(root, {*stage.hidden_matrices} - whole, whole, mesh, precision)
    for tensor in (*replicated, *network.buffers()):
        # They are alike already, but for processors of another kind.
        torch.distributed.broadcast(tensor.detach(), src=0)
    # What was a whole matrix before is gone.
    stage.hidden_matrices = [network.get_parameter(name) for name in hidden_names]
    replace_parameters(
        average, [(name, one.detach().clone()) for name, one in network.named_parameters()]
    )

    def compute_loss(*batch: object) -> StepLoss:
        loss, metrics = root(*batch)
        return StepLoss(loss, metrics)

    return compute_loss, average


def _spread(
    root: nn.Module,
    hidden: set[nn.Parameter],
    whole: set[nn.Parameter],
    mesh: "DeviceMesh",
    precision: Precision,
) -> None:
    """Spreads the hidden matrices each by itself, all others together but those that stay whole."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    reduced = torch.float32
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if precision == "bf16" else None,
        reduce_dtype=reduced,
        cast_forward_inputs=False,
    )
    for module in list(root.modules()):
        if not hidden.isdisjoint(module.parameters(recurse=False)):
            fully_shard(module, mesh=mesh, mp_policy=policy)
    fully_shard(
        root,
        mesh=mesh,
        mp_policy=MixedPrecisionPolicy(reduce_dtype=reduced, cast_forward_inputs=False),
        ignored_params=whole,
    )


def average_gradients(stage: Stage[N]) -> None:
    """Averages over all processes the gradients that FSDP leaves alone."""
    for module in stage.replicated:
        for parameter in module.parameters():
            if parameter.grad is not None:
                average_over_batch(parameter.grad)


def read_state(folder: Path, network: nn.Module, average: nn.Module) -> dict[str, Tensor]:
    """Reads this process's part of a checkpoint, which a run of any kind may have written.

    Args:
        folder: of the checkpoint.
        network: spread over processes; its weights and buffers are read into it.
        average: likewise.

    Returns:
        All tensors by name, spread as the network is. Those of an optimizer are new; what belongs
        to no parameter is whole and on the CPU.

    Raises:
        CheckpointError: the checkpoint is of another model, or cannot be read.
    """
    parameters = dict(network.named_parameters())
    own = {
        f"{part}.{name}": tensor
        for part, module in (("network", network), ("average", average))
        for name, tensor in module.state_dict().items()
    }
    tensors: dict[str, Tensor] = {}
    likes = shard_files.create_like(folder)
    for name, like in likes.items():
        part, _, rest = name.partition(".")
        parameter = parameters.get(rest.rpartition(".")[0])
        if name in own:
            tensors[name] = own[name]
        elif part == "optimizer" and parameter is not None and like.shape == parameter.shape:
            tensors[name] = torch.empty_like(parameter, dtype=like.dtype)
        else:
            tensors[name] = torch.empty_like(like, device="cpu")
    wrong = [name for name in own if name not in likes or likes[name].shape != own[name].shape]
    if wrong:
        raise CheckpointError(
            f"The checkpoint is of another model: `{folder}` has no `{wrong[0]}` of the shape "
            f"{tuple(own[wrong[0]].shape)}. Resume with the recipe that the run began with."
        )
    shard_files.read_into(folder, tensors)
    return tensors


class _Loss(nn.Module):
    """A loss module that returns tensors alone: FSDP looks for nothing else."""

    def __init__(self, loss_module: nn.Module) -> None:
        super().__init__()
        self.loss_module = loss_module

    def forward(self, *batch: object) -> tuple[Tensor, dict[str, Tensor]]:
        result = self.loss_module(*batch)
        return result.loss, dict(result.metrics)
