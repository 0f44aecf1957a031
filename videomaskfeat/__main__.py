"""`python -m videomaskfeat` is the console command."""

import sys

from videomaskfeat.cli import main

sys.exit(main())
