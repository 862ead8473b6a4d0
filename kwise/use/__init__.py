"""A checkpoint in, answers out.

``score_file``  takes a model and a file      conversations, rankings or pairs, streamed   gives the same lines with scores
``evaluation``  takes a model and rankings    metrics per file and split, baselines        gives tables and JSON
``export``      takes a model                 its card, another precision, its metrics     gives a folder to publish
``bindings``    take a model                  prompts and completions of RL trainers       give rewards
"""
