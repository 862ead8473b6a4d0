"""Rows in, rewards out.

``attention/``     takes Row                      who sees whom, stated once, run several ways  gives hidden states
``backbone``       takes a folder or hub id       strict loading, one linear unit as the head   gives a SeqCls model
``reward_at``      takes conversations            where the reward is read, by name             gives hidden states there
``reward_model``   takes conversations            the one scoring path                          gives rewards
``features``       takes rankings                 frozen backbone, cached on disk               gives what the head sees
``uncertainty``    takes hidden states            covariance of the head                        gives errors of rewards
``calibrated``     takes rewards                  temperature, centre, length slope             gives log-odds that hold
``adapter``        takes a LoRA folder            merges it into its base                       gives a SeqCls model
``foreign``        takes another trainer's files  tensors by name, each accounted for           gives a SeqCls state dict
``transformers4``  takes a folder                 names that transformers 4 reads               gives a folder for both
``smollm2``        takes an installed package     SmolLM2 out of its GGUF file                  gives a base model without a hub
"""
