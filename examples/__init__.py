"""Scripts to read and run. A package, because one of that name comes with opacus and would hide a folder."""
