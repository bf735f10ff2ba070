;; WASI's preview 1 for modules that Go has made.
;;
;; Go's collector may run whenever memory is allocated, and its runtime reads the clock then. Memory is
;; also allocated while the host passes a list, and an instance that calls the host at that time
;; traps. So nothing here calls the host while $allocating is set: clocks go on from what they showed
;; last, waiting ends at once, and texts are dropped.
;;
;; There are no files. The errors are those of preview 1: 6 again, 8 badf, 28 inval, 29 io.
(module
  (import "env" "memory" (memory 0))
  ;; Whether the host allocates memory for a list, or frees one. See mod.rs.
  (import "__main_module__" "rbdkit_allocating" (global $allocating (mut i32)))
  (import "wasi:cli/exit@0.2.0" "exit" (func $exit (param i32)))
  (import "wasi:cli/stdout@0.2.0" "get-stdout" (func $stdout (result i32)))
  (import "wasi:cli/stderr@0.2.0" "get-stderr" (func $stderr (result i32)))
  (import "wasi:io/streams@0.2.0" "[method]output-stream.blocking-write-and-flush"
    (func $write (param i32 i32 i32 i32)))
  (import "wasi:io/streams@0.2.0" "[resource-drop]output-stream" (func $drop_stream (param i32)))
  (import "wasi:clocks/monotonic-clock@0.2.0" "now" (func $monotonic_now (result i64)))
  (import "wasi:clocks/monotonic-clock@0.2.0" "subscribe-duration"
    (func $subscribe (param i64) (result i32)))
  (import "wasi:io/poll@0.2.0" "[method]pollable.block" (func $block (param i32)))
  (import "wasi:io/poll@0.2.0" "[resource-drop]pollable" (func $drop_pollable (param i32)))
  (import "wasi:clocks/wall-clock@0.2.0" "now" (func $wall_now (param i32)))
  (import "wasi:random/random@0.2.0" "get-random-u64" (func $random (result i64)))

  ;; What the clocks showed last, in nanoseconds.
  (global $monotonic (mut i64) (i64.const 0))
  (global $wall (mut i64) (i64.const 0))

  ;; Moves both clocks on without asking the host.
  (func $advance (param $by i64)
    (global.set $monotonic (i64.add (global.get $monotonic) (local.get $by)))
    (global.set $wall (i64.add (global.get $wall) (local.get $by))))

  ;; Writes the time to $at. During an allocation each reading is a microsecond later, so that a loop
  ;; which waits for a time ends.
  (func $clock_time_get (export "clock_time_get")
    (param $clock i32) (param $precision i64) (param $at i32) (result i32)
    (local $saved i64) (local $now i64)
    (if (i32.gt_u (local.get $clock) (i32.const 1)) (then (return (i32.const 28))))
    (if (global.get $allocating)
      (then (call $advance (i64.const 1000)))
      (else
        (if (local.get $clock)
          (then
            ;; The host's clock may be behind what was shown during an allocation.
            (local.set $now (call $monotonic_now))
            (if (i64.gt_u (local.get $now) (global.get $monotonic))
              (then (global.set $monotonic (local.get $now)))))
          (else
            ;; The answer takes 16 bytes. What is behind the 8 of the result is put back.
            (local.set $saved (i64.load offset=8 (local.get $at)))
            (call $wall_now (local.get $at))
            (global.set $wall
              (i64.add
                (i64.mul (i64.load (local.get $at)) (i64.const 1000000000))
                (i64.load32_u offset=8 (local.get $at))))
            (i64.store offset=8 (local.get $at) (local.get $saved))))))
    (i64.store (local.get $at)
      (select (global.get $monotonic) (global.get $wall) (local.get $clock)))
    (i32.const 0))

  (func (export "clock_res_get") (param $clock i32) (param $at i32) (result i32)
    (i64.store (local.get $at) (i64.const 1))
    (i32.const 0))

  ;; Standard output and standard error. The host makes lines of the bytes.
  (func (export "fd_write")
    (param $fd i32) (param $parts i32) (param $count i32) (param $written i32) (result i32)
    (local $stream i32) (local $bytes i32) (local $left i32) (local $now i32) (local $total i32)
    (local $saved i64) (local $error i32)
    (if (i32.gt_u (i32.sub (local.get $fd) (i32.const 1)) (i32.const 1))
      (then (return (i32.const 8))))
    (if (i32.eqz (global.get $allocating))
      (then
        (if (i32.eq (local.get $fd) (i32.const 1))
          (then (local.set $stream (call $stdout)))
          (else (local.set $stream (call $stderr))))))
    (block $done
      (loop $next_part
        (br_if $done (i32.eqz (local.get $count)))
        (local.set $bytes (i32.load (local.get $parts)))
        (local.set $left (i32.load offset=4 (local.get $parts)))
        (local.set $total (i32.add (local.get $total) (local.get $left)))
        (local.set $parts (i32.add (local.get $parts) (i32.const 8)))
        (local.set $count (i32.sub (local.get $count) (i32.const 1)))
        (br_if $next_part (global.get $allocating))
        (loop $next_piece
          (br_if $next_part (i32.eqz (local.get $left)))
          ;; A stream takes at most 4096 bytes at once.
          (local.set $now
            (select (local.get $left) (i32.const 4096)
              (i32.lt_u (local.get $left) (i32.const 4096))))
          ;; The answer takes 12 bytes. What is behind the 4 of $written is put back.
          (local.set $saved (i64.load offset=4 (local.get $written)))
          (call $write (local.get $stream) (local.get $bytes) (local.get $now) (local.get $written))
          (local.set $error (i32.load8_u (local.get $written)))
          (i64.store offset=4 (local.get $written) (local.get $saved))
          (br_if $done (local.get $error))
          (local.set $bytes (i32.add (local.get $bytes) (local.get $now)))
          (local.set $left (i32.sub (local.get $left) (local.get $now)))
          (br $next_piece))))
    (if (local.get $stream) (then (call $drop_stream (local.get $stream))))
    (if (local.get $error) (then (return (i32.const 29))))
    (i32.store (local.get $written) (local.get $total))
    (i32.const 0))

  (func (export "random_get") (param $at i32) (param $length i32) (result i32)
    (local $bits i64) (local $left i32)
    (if (global.get $allocating) (then (return (i32.const 6))))
    (block $done
      (loop $next_byte
        (br_if $done (i32.eqz (local.get $length)))
        (if (i32.eqz (local.get $left))
          (then (local.set $bits (call $random)) (local.set $left (i32.const 8))))
        (i64.store8 (local.get $at) (local.get $bits))
        (local.set $bits (i64.shr_u (local.get $bits) (i64.const 8)))
        (local.set $left (i32.sub (local.get $left) (i32.const 1)))
        (local.set $at (i32.add (local.get $at) (i32.const 1)))
        (local.set $length (i32.sub (local.get $length) (i32.const 1)))
        (br $next_byte)))
    (i32.const 0))

  ;; How long a subscription waits from now on. Files are answered at once.
  (func $wait_of (param $subscription i32) (result i64)
    (local $wait i64) (local $now i64) (local $clock i32)
    (if (i32.load8_u offset=8 (local.get $subscription)) (then (return (i64.const 0))))
    (local.set $wait (i64.load offset=24 (local.get $subscription)))
    (if (i32.eqz (i32.and (i32.load16_u offset=40 (local.get $subscription)) (i32.const 1)))
      (then (return (local.get $wait))))
    ;; It is a time, not a duration. The times are about as old as the runtime's last reading.
    (local.set $clock (i32.load offset=16 (local.get $subscription)))
    (local.set $now (select (global.get $monotonic) (global.get $wall) (local.get $clock)))
    (if (i64.le_u (local.get $wait) (local.get $now)) (then (return (i64.const 0))))
    (i64.sub (local.get $wait) (local.get $now)))

  ;; Waits for the shortest of some times.
  (func (export "poll_oneoff")
    (param $in i32) (param $out i32) (param $count i32) (param $events i32) (result i32)
    (local $shortest i64) (local $wait i64) (local $nth i32) (local $at i32) (local $made i32)
    (local $pollable i32) (local $is_file i32)
    (if (i32.eqz (local.get $count)) (then (return (i32.const 28))))
    (local.set $shortest (i64.const -1))
    (loop $look
      (local.set $wait
        (call $wait_of (i32.add (local.get $in) (i32.mul (local.get $nth) (i32.const 48)))))
      (if (i64.lt_u (local.get $wait) (local.get $shortest))
        (then (local.set $shortest (local.get $wait))))
      (local.set $nth (i32.add (local.get $nth) (i32.const 1)))
      (br_if $look (i32.lt_u (local.get $nth) (local.get $count))))
    (local.set $nth (i32.const 0))
    (loop $answer
      (local.set $at (i32.add (local.get $in) (i32.mul (local.get $nth) (i32.const 48))))
      (local.set $is_file (i32.ne (i32.load8_u offset=8 (local.get $at)) (i32.const 0)))
      (if (i64.le_u (call $wait_of (local.get $at)) (local.get $shortest))
        (then
          (i64.store (local.get $out) (i64.load (local.get $at)))
          (i64.store offset=8 (local.get $out) (i64.const 0))
          (i64.store offset=16 (local.get $out) (i64.const 0))
          (i64.store offset=24 (local.get $out) (i64.const 0))
          (i32.store16 offset=8 (local.get $out) (i32.mul (local.get $is_file) (i32.const 8)))
          (i32.store8 offset=10 (local.get $out) (i32.load8_u offset=8 (local.get $at)))
          (local.set $out (i32.add (local.get $out) (i32.const 32)))
          (local.set $made (i32.add (local.get $made) (i32.const 1)))))
      (local.set $nth (i32.add (local.get $nth) (i32.const 1)))
      (br_if $answer (i32.lt_u (local.get $nth) (local.get $count))))
    (i32.store (local.get $events) (local.get $made))
    ;; The scheduler asks without a time to wait after every few goroutines.
    (if (i64.ne (local.get $shortest) (i64.const 0))
      (then
        (if (global.get $allocating)
          (then (call $advance (local.get $shortest)))
          (else
            (local.set $pollable (call $subscribe (local.get $shortest)))
            (call $block (local.get $pollable))
            (call $drop_pollable (local.get $pollable))))))
    (i32.const 0))

  (func (export "sched_yield") (result i32) (i32.const 0))

  (func (export "proc_exit") (param $status i32)
    (if (i32.eqz (global.get $allocating))
      (then (call $exit (i32.ne (local.get $status) (i32.const 0)))))
    unreachable)

  (func (export "proc_raise") (param i32) (result i32) unreachable)

  ;; There are no arguments and no variables.
  (func $none (param $count i32) (param $size i32) (result i32)
    (i32.store (local.get $count) (i32.const 0))
    (i32.store (local.get $size) (i32.const 0))
    (i32.const 0))
  (export "args_sizes_get" (func $none))
  (export "environ_sizes_get" (func $none))
  (func (export "args_get") (param i32 i32) (result i32) (i32.const 0))
  (func (export "environ_get") (param i32 i32) (result i32) (i32.const 0))

  ;; The standard streams are character devices.
  (func (export "fd_fdstat_get") (param $fd i32) (param $at i32) (result i32)
    (if (i32.gt_u (local.get $fd) (i32.const 2)) (then (return (i32.const 8))))
    (i64.store (local.get $at) (i64.const 2))
    (i64.store offset=8 (local.get $at) (i64.const 0))
    (i64.store offset=16 (local.get $at) (i64.const 0))
    (i32.const 0))

  ;; No file is open.
  (func (export "fd_prestat_get") (param i32 i32) (result i32) (i32.const 8))
  (func (export "fd_advise") (param i32 i64 i64 i32) (result i32) (i32.const 8))
  (func (export "fd_allocate") (param i32 i64 i64) (result i32) (i32.const 8))
  (func (export "fd_close") (param i32) (result i32) (i32.const 8))
  (func (export "fd_datasync") (param i32) (result i32) (i32.const 8))
  (func (export "fd_fdstat_set_flags") (param i32 i32) (result i32) (i32.const 8))
  (func (export "fd_fdstat_set_rights") (param i32 i64 i64) (result i32) (i32.const 8))
  (func (export "fd_filestat_get") (param i32 i32) (result i32) (i32.const 8))
  (func (export "fd_filestat_set_size") (param i32 i64) (result i32) (i32.const 8))
  (func (export "fd_filestat_set_times") (param i32 i64 i64 i32) (result i32) (i32.const 8))
  (func (export "fd_pread") (param i32 i32 i32 i64 i32) (result i32) (i32.const 8))
  (func (export "fd_prestat_dir_name") (param i32 i32 i32) (result i32) (i32.const 8))
  (func (export "fd_pwrite") (param i32 i32 i32 i64 i32) (result i32) (i32.const 8))
  (func (export "fd_read") (param i32 i32 i32 i32) (result i32) (i32.const 8))
  (func (export "fd_readdir") (param i32 i32 i32 i64 i32) (result i32) (i32.const 8))
  (func (export "fd_renumber") (param i32 i32) (result i32) (i32.const 8))
  (func (export "fd_seek") (param i32 i64 i32 i32) (result i32) (i32.const 8))
  (func (export "fd_sync") (param i32) (result i32) (i32.const 8))
  (func (export "fd_tell") (param i32 i32) (result i32) (i32.const 8))
  (func (export "path_create_directory") (param i32 i32 i32) (result i32) (i32.const 8))
  (func (export "path_filestat_get") (param i32 i32 i32 i32 i32) (result i32) (i32.const 8))
  (func (export "path_filestat_set_times") (param i32 i32 i32 i32 i64 i64 i32) (result i32) (i32.const 8))
  (func (export "path_link") (param i32 i32 i32 i32 i32 i32 i32) (result i32) (i32.const 8))
  (func (export "path_open") (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32) (i32.const 8))
  (func (export "path_readlink") (param i32 i32 i32 i32 i32 i32) (result i32) (i32.const 8))
  (func (export "path_remove_directory") (param i32 i32 i32) (result i32) (i32.const 8))
  (func (export "path_rename") (param i32 i32 i32 i32 i32 i32) (result i32) (i32.const 8))
  (func (export "path_symlink") (param i32 i32 i32 i32 i32) (result i32) (i32.const 8))
  (func (export "path_unlink_file") (param i32 i32 i32) (result i32) (i32.const 8))
  (func (export "sock_accept") (param i32 i32 i32) (result i32) (i32.const 8))
  (func (export "sock_recv") (param i32 i32 i32 i32 i32 i32) (result i32) (i32.const 8))
  (func (export "sock_send") (param i32 i32 i32 i32 i32) (result i32) (i32.const 8))
  (func (export "sock_shutdown") (param i32 i32) (result i32) (i32.const 8)))
