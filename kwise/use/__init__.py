"""A checkpoint in, answers out.

``score_file``  takes a model and a file      conversations, rankings or pairs, streamed   gives the same lines with scores
``ray_scores``  takes a data set or a file    the same on the workers of a Ray cluster     gives the same
``suites``      takes a suite's files         reads and measures them as published         gives Ranking, figures
``foreign``     takes rows                    finds the scores somebody wrote into them    gives rewards
``evaluation``  takes rewards and rankings    metrics per file and split, baselines        gives metrics before their intervals
``ceiling``     takes repeated judgements     how well any model could do                  gives the same
``tables``      takes these                   splits, models and differences               gives tables
``results``     takes these                   RewardBench's results, model-index           gives files
``export``      takes a model                 its card, another precision, its metrics     gives a folder to publish
``bindings``    take a model                  prompts and completions of RL trainers       give rewards
"""
