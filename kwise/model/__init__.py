"""Rows in, rewards out.

``attention/``    takes Row                   who sees whom, stated once, run several ways    gives hidden states
``backbone``      takes a folder or hub id    strict loading, one linear unit as the head     gives a SeqCls model
``reward_model``  takes conversations         the one scoring path                            gives rewards
``features``      takes rankings              frozen backbone, cached on disk                 gives what the head sees
"""
