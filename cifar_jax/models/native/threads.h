// A parallel loop over the threads that XLA keeps for its own operations.
#pragma once

#include <sched.h>
#include <stdatomic.h>

#include "vectors.h"
#include "xla/ffi/api/c_api.h"

typedef void Body(void* context, int64_t index);

typedef struct {
  Body* body;
  void* context;
  int64_t count;
  atomic_llong next, done, holders;
} Loop;

static void release_loop(Loop* loop) {
  if (atomic_fetch_sub(&loop->holders, 1) == 1) free(loop);
}

// Takes indices until none is left. A thread that starts late finds none: nobody waits for it, only for what was taken.
static void run_loop(void* argument) {
  Loop* loop = argument;
  for (int64_t i; (i = atomic_fetch_add(&loop->next, 1)) < loop->count; atomic_fetch_add(&loop->done, 1))
    loop->body(loop->context, i);
  release_loop(loop);
}

static int64_t count_threads(const XLA_FFI_CallFrame* frame) {
  int64_t threads = 1;
  XLA_FFI_ThreadPool_NumThreads_Args args = {sizeof args, NULL, frame->ctx, &threads};
  XLA_FFI_Error* error = frame->api->XLA_FFI_ThreadPool_NumThreads(&args);
  if (error) {  // no pool: this thread does it all
    XLA_FFI_Error_Destroy_Args destroy = {sizeof destroy, NULL, error};
    frame->api->XLA_FFI_Error_Destroy(&destroy);
    return 1;
  }
  return threads;
}

// body(context, 0 ... count - 1), in any order, on this thread and the pool's; returns when all are done.
static void parallel(const XLA_FFI_CallFrame* frame, int64_t count, Body* body, void* context) {
  if (count < 1) return;
  int64_t helpers = count_threads(frame) - 1;
  if (helpers > count - 1) helpers = count - 1;
  Loop* loop = zeros(1, sizeof *loop);
  *loop = (Loop){body, context, count};
  atomic_store(&loop->holders, helpers + 2);
  for (int64_t i = 0; i < helpers; i++) {
    XLA_FFI_ThreadPool_Schedule_Args args = {sizeof args, NULL, frame->ctx, run_loop, loop};
    XLA_FFI_Error* error = frame->api->XLA_FFI_ThreadPool_Schedule(&args);
    if (error) {
      XLA_FFI_Error_Destroy_Args destroy = {sizeof destroy, NULL, error};
      frame->api->XLA_FFI_Error_Destroy(&destroy);
      release_loop(loop);
    }
  }
  run_loop(loop);
  while (atomic_load(&loop->done) < count) sched_yield();
  release_loop(loop);
}

// Memory of this thread, kept from call to call: `count` numbers, valid until the thread asks again.
static REAL* scratch(int64_t count) {
  static _Thread_local REAL* memory;
  static _Thread_local int64_t size;
  if (count > size) {
    free(memory);
    size = count;
    if (posix_memalign((void**)&memory, 64, size * sizeof(REAL))) abort();
  }
  return memory;
}
