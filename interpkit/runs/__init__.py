"""A run on disk: its folder, manifest, history, and shards of samples."""
