"""How the bundled models were made: one recipe a file, each a function of a seed."""
