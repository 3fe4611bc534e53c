"`promptbench` and `python -m promptbench`; written by hand, and small, so that Ctrl-C while the rest is imported is one line"
import sys

def main():
    "The command of promptbench.cli.main"
    try: from promptbench.cli.main import main as run
    except KeyboardInterrupt:
        print('promptbench: stopped; the same command goes on from here', file=sys.stderr)
        sys.exit(130)
    run()

if __name__=='__main__': main()
