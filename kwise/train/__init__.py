"""A number in, a checkpoint out.

``recipe``      takes a TOML file           strict keys, overrides                   gives Recipe
``decoder``     takes a model               its call gives a row's rewards           gives it, ready to be trained
``trainer``     takes encoded rankings      transformers.Trainer, N rankings a step  gives a trained model
``run``         takes a Recipe              data, model, training, evaluation        gives a model and its metrics
``forecast``    takes a Recipe              a few rows measured, the rest by lines      gives rows, memory and time to come
``run_folder``  takes what a run learns     recipe, versions, data checks, metrics   gives a folder that tells it later
"""
