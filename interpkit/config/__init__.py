"""What a run is told: the recipe, and the schemas of the files that a run consists of."""
