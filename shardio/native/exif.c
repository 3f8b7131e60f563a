/* Orientation in EXIF, by the rules of shardio/fields/exif.py: tag 0x0112 of the first image file
 * directory of a TIFF structure (EXIF 2.32 and TIFF 6.0), found by offset with a bound on the
 * work.
 */
#include <string.h>

#include "core.h"

#define ORIENTATION_TAG 0x0112
#define MAX_ENTRIES 1024
#define ENTRY 12

enum { BYTE = 1, SHORT = 3, LONG = 4 }; /* TIFF's kinds of values */

static uint32_t number(const uint8_t *data, int bytes, int is_little)
{
    uint32_t value = 0;
    for (int place = 0; place < bytes; place++)
        value = value << 8 | data[is_little ? bytes - 1 - place : place];
    return value;
}

int64_t exif_orientation(const uint8_t *data, size_t size)
{
    if (size >= 6 && memcmp(data, "Exif\0\0", 6) == 0) {
        data += 6;
        size -= 6;
    }
    if (size < 8)
        return -1;
    int is_little = memcmp(data, "II*\0", 4) == 0;
    if (!is_little && memcmp(data, "MM\0*", 4) != 0)
        return -1;
    size_t directory = number(data + 4, 4, is_little);
    if (directory > size - 2)
        return -1;
    size_t entries = number(data + directory, 2, is_little);
    size_t present = (size - directory - 2) / ENTRY;
    entries = entries < present ? entries : present;
    for (size_t index = 0; index < entries && index < MAX_ENTRIES; index++) {
        const uint8_t *entry = data + directory + 2 + ENTRY * index;
        uint32_t kind = number(entry + 2, 2, is_little);
        if (number(entry, 2, is_little) != ORIENTATION_TAG)
            continue;
        if (kind == BYTE || kind == SHORT || kind == LONG)
            return number(entry + 8, (int)kind == SHORT ? 2 : (int)kind, is_little);
    }
    return -1;
}
