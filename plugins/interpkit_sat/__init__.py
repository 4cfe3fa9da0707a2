"""sat."""
from interpkit_sat.networks import BinaryNet, BinaryNets
