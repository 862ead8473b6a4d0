"""A checkpoint in, answers out.

``scorable``           takes a line                its conversations                           puts their scores into it
``scored_lines``       takes a model and lines     a window of them at a time                  gives the same with scores
``kept_lines``         takes an output             is it of this model and this input?         gives how many lines to keep
``score_file``         takes a model and a file    conversations, rankings or pairs, streamed  gives the same lines with scores
``score_shares``       takes the same              several processes, any of which may die     gives the same
``ray_scores``         takes a data set or a file  the same on the workers of a Ray cluster    gives the same
``score_cache``        takes a model and rankings  scores kept on disk                         gives rewards, nothing scored twice
``foreign``            takes rows                  finds the scores somebody wrote into them   gives rewards
``suites``             takes a suite's files       reads and measures them as published        gives Ranking, figures
``evaluation``         takes rewards and rankings  metrics per file and split, baselines       gives Draws of metrics
``ceiling``            takes repeated judgements   how well any model could do                 gives the same
``tables``             takes these                 splits, models and differences              gives tables
``results``            takes these                 RewardBench's results, model-index          gives files
``calibrate``          takes held-out rankings     fits what makes rewards log-odds            gives Calibration, in kwise.json
``audit``              takes rewards and rankings  what is rewarded beside quality             gives pages, verdicts
``doctor``             takes a model folder        what other tools read from it               gives findings, a mended copy
``import_checkpoint``  takes a foreign checkpoint  every tensor accounted for                  gives a model folder
``export``             takes a model               another precision, its metrics              gives a folder to publish
``model_card``         takes what was measured     the README.md of a published model          gives a card
``bindings``           take a model                prompts and completions of RL trainers      give rewards
"""
