"""The leaderboard: rules, weights and samplers on mixtures that each isolate one effect, at equal NFE.

`board.run` evaluates what is missing from the ledger, then writes the page, the CSV and the pictures.
"""
