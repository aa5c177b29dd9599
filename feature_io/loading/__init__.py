"""Files into stores: CSV, JSON lines and Parquet, in batches, checked against a view.

`cells` turns what a file holds into values, `files` takes files apart, `progress` remembers how far a load came, `load`
puts it together and `verify` compares a file with a store. Memory does not grow with the file.
"""
