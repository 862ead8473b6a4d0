"""Rankings in, rows out.

``lines``       takes a file or hub id  tells the kind of file by its bytes       gives rows with line numbers
``turns``       takes a field of a row  messages, a transcript or plain text      gives turns and texts
``sources``     takes rows              tells the format by the columns           gives Ranking
``check``       takes a file            finds what is wrong with it               gives Report
``fix``         takes a file            mends what can be, counts every change     gives a cleaned copy
``baselines``   takes Ranking           longer wins, better model wins            gives sums and counts
``strength``    takes Ranking           how sure the judge was of each pair       gives thirds of all pairs
``covariates``  takes responses         length, lists and the like as numbers     gives columns for the head fit
``encode``      takes Ranking           chat template, truncation, shared prefix  gives EncodedRanking
``unique``      takes Ranking           pools equal prompts and responses         gives EncodedRanking, each once
``cache``       takes a file            knows it again by its content             gives a place on disk
``encoding``    takes files             encodes each once, by all cores           gives files of ids
``encoded``     takes files of ids      maps them into memory                     gives EncodedRanking
``packing``     takes EncodedRanking    first-fit decreasing under a budget       gives Row
``tally``       takes EncodedRanking    counts rows and tokens beforehand         gives Tally
"""
