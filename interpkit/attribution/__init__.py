"""Attribution: which pixels are evidence for a class, how faithful the maps are, and their export."""
