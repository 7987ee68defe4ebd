"""AdamW, and for tables with sparse gradients a form of it that touches no more rows than the step did."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


class LazyAdamW(torch.optim.AdamW):
    """AdamW (Loshchilov & Hutter 2019); of a parameter with a sparse gradient only the gradient's rows are updated.

    The rest of such a table costs nothing. A row's moments rest between its gradients, as in `torch.optim.SparseAdam`.
    Weight decay there is refused.
    """

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step, after `closure` has computed the gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.grad.is_sparse:
                    self._update_rows(parameter, group)
                    parameter.grad = None
        super().step()
        return loss

    @torch.no_grad()
    def _update_rows(self, table: nn.Parameter, group: dict[str, Any]) -> None:
        if group["weight_decay"]:
            raise ValueError("rows that rest cannot have weight decay")
        assert table.grad is not None
        gradient = table.grad.coalesce()
        [rows], values = gradient.indices(), gradient.values()
        state = self.state[table]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(table), torch.zeros_like(table)
        state["step"] += 1
        [beta, decay], steps = group["betas"], float(state["step"])
        means = state["exp_avg"][rows].lerp_(values, 1 - beta)
        squares = state["exp_avg_sq"][rows].mul_(decay).addcmul_(values, values, value=1 - decay)
        state["exp_avg"][rows], state["exp_avg_sq"][rows] = means, squares
        scale = squares.div_(1 - decay**steps).sqrt_().add_(group["eps"])
        table.index_add_(0, rows, means / scale, alpha=-group["lr"] / (1 - beta**steps))


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> None:
    """Scale all gradients together to a norm of at most `limit`, sparse ones included."""
    gradients: list[Tensor] = []
    for parameter in parameters:
        if parameter.grad is None:
            continue
        if parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
            gradients.append(parameter.grad.values())
        else:
            gradients.append(parameter.grad)
    norm = nn.utils.get_total_norm(gradients)
    scale = (limit / (norm + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(gradients, scale)
