"""A number in, a checkpoint out.

``recipe``           takes a TOML file           strict keys, overrides                      gives Recipe
``config``           takes a recipe's [trainer]  TrainingArguments and what a ranking needs  gives KwiseConfig
``arguments``        takes what a trainer gets   can rankings be trained on with it?         gives rankings, or says why not
``decoder``          takes a model               its call gives a row's rewards              gives it, ready to be trained
``sampler``          takes lengths               which rankings a step and a process has     gives steps
``step``             takes a step's rankings     what is run, what it adds up to             gives loss, and whom to blame
``trainer``          takes encoded rankings      transformers.Trainer, N rankings a step     gives a trained model
``guards``           takes signals and losses    stops, jumps, lost trackers                 gives a run that ends well
``checkpoints``      takes a checkpoint          a seal, written last                        gives whether it is whole
``run``              takes a Recipe              data, model, training, evaluation           gives a model and its metrics
``run_folder``       takes what a run learns     recipe, versions, data checks, metrics      gives a folder that tells it later
``forecast``         takes a Recipe              a few rows measured, the rest by lines      gives rows, memory and time to come
``verify_resume``    takes a Recipe              a killed run against a whole one            gives what differs
``add_uncertainty``  takes a trained model       its training rankings once more             gives errors of its rewards
"""
