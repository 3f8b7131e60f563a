/* Growing buffers, which save the page faults of new memory. */
#include <stdlib.h>

#include "core.h"

enum { ALIGNMENT = 64 };

uint8_t *buffer_take(struct buffer *buffer, size_t size) {
  if (buffer->bytes != NULL && size <= buffer->size) return buffer->bytes;
  if (size > SIZE_MAX / 2 - ALIGNMENT) return NULL;
  size_t room = (size + size / 2 + ALIGNMENT) / ALIGNMENT * ALIGNMENT;
  buffer_free(buffer);
  buffer->bytes = aligned_alloc(ALIGNMENT, room);
  if (buffer->bytes != NULL) buffer->size = room;
  return buffer->bytes;
}

void buffer_free(struct buffer *buffer) {
  free(buffer->bytes);
  buffer->bytes = NULL;
  buffer->size = 0;
}
