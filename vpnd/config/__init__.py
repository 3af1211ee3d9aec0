"""What the operator wrote: the model of a configuration file and its loader."""

from vpnd.config.load import load_server
from vpnd.config.model import ServerConfig

__all__ = ["ServerConfig", "load_server"]
