"""Memory that 128 conditions of 1,000 classes at 64 x 64 allocate; goal: under 64 MB in all."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from interpkit.plugins import installed


class Allocations(TorchDispatchMode):
    """Adds up the bytes of every tensor that an operation returns, freed or not."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run the operation and count."""
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.total += tensor.numel() * tensor.element_size()
        return result


def main() -> None:
    """Draw the conditions and their maps, counting."""
    plugins = installed()
    conditioner = plugins.registry.get("conditioner", "vecmat")(1000, (3, 64, 64))
    generator = plugins.registry.get("generator", "upconv")(conditioner.spec, (3, 64, 64))
    with Allocations() as counted:
        condition = conditioner.sample(128)
        maps = condition.maps(*generator.grid)
    print(f"maps {tuple(maps.shape)}: {counted.total / 1e6:.1f} MB allocated in all (goal < 64 MB)")


if __name__ == "__main__":
    main()
