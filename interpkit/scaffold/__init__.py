"""`interpkit plugins new`: the whole package of a new plugin, which installs, works and is tested as it stands."""
