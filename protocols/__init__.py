"""The treaty: what peers promise one another. Standard library only; no clock, no socket, no tensor.

If two peers running different versions of a line could disagree, the line belongs here.
If only this machine cares, it belongs in `tapestryd`.
"""

TREATY = 1
"""Version of the treaty. Peers of another version cannot even find each other: it is part of the DHT prefix."""
