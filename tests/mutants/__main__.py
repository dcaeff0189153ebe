"""Put each deliberate error into the code, one at a time, and run its tests."""

import sys

from tests.mutants.runner import main

sys.exit(main())
