"""Loaders of classifiers' files."""

from __future__ import annotations

from pathlib import Path

from interpkit import Loader, ModelError, Target, TargetOptions, fill_architecture, read_target_file, wrap


class SafetensorsLoader(Loader):
    """A ``.safetensors`` file whose metadata, or whose user, names a registered architecture."""

    name = "safetensors"
    help = ".safetensors with interpkit metadata, or with --arch and --input-shape"

    def accepts(self, path: Path) -> bool:
        """Say whether it is a file that ends in .safetensors."""
        return path.suffix == ".safetensors" and path.is_file()

    def load(self, path: Path, options: TargetOptions) -> Target:
        """Read the file, build the architecture, fill in the weights; see `Loader.load`."""
        tensors, written = read_target_file(path)
        facts = written.model_copy(update=options.said())
        missing = [
            flag
            for flag, value in (
                ("--arch FAMILY:NAME", facts.arch),
                ("--input-shape C,H,W", facts.input_shape),
            )
            if value is None
        ]
        if missing:
            raise ModelError(
                f"{path} does not say {'which architecture it is' if facts.arch is None else 'its input shape'}: it "
                f"has no interpkit metadata. Add {' and '.join(missing)} (and --mean, --std, --input-range where the "
                f"classifier was trained with some)."
            )
        assert facts.arch is not None and facts.input_shape is not None
        module = fill_architecture(facts.arch, facts.arch_args, tensors)
        target = wrap(
            module,
            facts.input_shape,
            mean=facts.mean if facts.mean is not None else 0.0,
            std=facts.std if facts.std is not None else 1.0,
            input_range=facts.input_range or (0.0, 1.0),
            num_classes=facts.num_classes,
            class_names=facts.class_names,
            feature_layer=facts.feature_layer,
            name=path.stem,
        )
        recorded = {"arch": facts.arch, "arch_args": facts.arch_args}
        target.description = target.description.model_copy(update=recorded)
        target.sources = {
            **target.sources,
            **dict.fromkeys(written.said(), "the file's metadata"),
            **dict.fromkeys(options.said(), "given"),
        }
        return target
