"""`python -m tessella` is the command `tessella`; `torchrun -m tessella` needs it."""

from tessella.cli import main

main()
