"""Config machinery: frozen dataclasses, checked on construction, to and from plain dicts and TOML."""
