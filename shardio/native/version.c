/* What Python asks first: whether this is the library that it knows, and what it was built with. */
#include <stdio.h> /* jpeglib.h needs it */

#include <jpeglib.h>

#include "core.h"

#ifndef LIBJPEG_TURBO_VERSION
#error "jpeglib.h is not that of libjpeg-turbo"
#endif

#define TEXT(name) #name
#define TEXT_OF(macro) TEXT(macro)

EXPORTED int shardio_core_version(void);
EXPORTED const char *shardio_core_libraries(void);
EXPORTED extern const char shardio_core_build[];

/* Sources and flags as build.py hashes them, by which it knows a library that need not be built. */
const char shardio_core_build[] = SHARDIO_BUILD;

/* VERSION in __init__.py is the same. Both go up whenever what crosses to Python changes. */
int shardio_core_version(void) { return 4; }

const char *shardio_core_libraries(void) {
  return "libjpeg-turbo " TEXT_OF(LIBJPEG_TURBO_VERSION);
}
