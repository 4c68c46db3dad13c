"""`python -m peft_bidora`."""

from peft_bidora.cli import main

main()
