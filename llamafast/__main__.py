"""python -m llamafast"""

import sys

from llamafast.cli import main

sys.exit(main())
