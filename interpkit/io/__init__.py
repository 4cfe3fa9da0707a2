"""Reading and writing files safely: atomic writes, locks, untrusted files, data sets and images."""
