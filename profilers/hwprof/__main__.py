"""`python -m hwprof` is the agent."""

from hwprof.agent import main

if __name__ == "__main__":
    main()
