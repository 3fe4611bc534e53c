"`python -m promptbench` is the command `promptbench`; written by hand"
from promptbench.cli.main import main

if __name__=='__main__': main()
