"""Reward functions in the form that RL trainers call: one module a trainer. Each loads a model once a process and scores with it.

The trainers hand over prompts and completions; rewards are ``RewardModel.score``'s, calibrated or as lower bounds if asked.
"""
