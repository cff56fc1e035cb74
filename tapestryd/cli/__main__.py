import sys

from tapestryd.cli import main

sys.exit(main())
