// What XLA hands over with a call: arguments, results, attributes.
#pragma once

#include "stored.h"
#include "xla/ffi/api/c_api.h"

// The first call asks for the version this was built for.
static int asks_version(XLA_FFI_CallFrame* frame) {
  XLA_FFI_Metadata_Extension* extension = (XLA_FFI_Metadata_Extension*)frame->extension_start;
  if (!extension || extension->extension_base.type != XLA_FFI_Extension_Metadata) return 0;
  XLA_FFI_Metadata* metadata = extension->metadata;
  metadata->api_version.major_version = XLA_FFI_API_MAJOR;
  metadata->api_version.minor_version = XLA_FFI_API_MINOR;
  return 1;
}

static const REAL* argument(const XLA_FFI_CallFrame* frame, int64_t i) { return ((XLA_FFI_Buffer*)frame->args.args[i])->data; }
static const STORED* images(const XLA_FFI_CallFrame* frame, int64_t i) { return ((XLA_FFI_Buffer*)frame->args.args[i])->data; }
static const int64_t* argument_shape(const XLA_FFI_CallFrame* frame, int64_t i) { return ((XLA_FFI_Buffer*)frame->args.args[i])->dims; }
static REAL* result(const XLA_FFI_CallFrame* frame, int64_t i) { return ((XLA_FFI_Buffer*)frame->rets.rets[i])->data; }
static STORED* result_images(const XLA_FFI_CallFrame* frame, int64_t i) { return ((XLA_FFI_Buffer*)frame->rets.rets[i])->data; }
static const int64_t* result_shape(const XLA_FFI_CallFrame* frame, int64_t i) { return ((XLA_FFI_Buffer*)frame->rets.rets[i])->dims; }

static int64_t attribute(const XLA_FFI_CallFrame* frame, const char* name) {
  for (int64_t i = 0; i < frame->attrs.size; i++) {
    const XLA_FFI_ByteSpan* span = frame->attrs.names[i];
    if (span->len == strlen(name) && !memcmp(span->ptr, name, span->len))
      return *(int64_t*)((XLA_FFI_Scalar*)frame->attrs.attrs[i])->value;
  }
  abort();  // blocks.py and native_gated.py pass them all
}
