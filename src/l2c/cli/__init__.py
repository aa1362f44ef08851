"""The command line: `l2c demo | learn | sample | inspect`."""
