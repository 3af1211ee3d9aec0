"""Manual pages and completions, made from the parsers and the models that the programs use."""
