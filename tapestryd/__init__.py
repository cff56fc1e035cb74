"""One peer of a Tapestry run."""

from importlib.metadata import version

__version__ = version("tapestryd")
