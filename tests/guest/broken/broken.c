// SPDX-License-Identifier: GPL-2.0
/* A module that makes the mistake whose name is written to /proc/broken. */
#include <linux/delay.h>
#include <linux/jiffies.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/proc_fs.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

static DEFINE_MUTEX(first);
static DEFINE_MUTEX(second);
static int *nowhere;
static bool waits;
module_param(waits, bool, 0);
MODULE_PARM_DESC(waits, "init waits until it is killed");
static void *lost;
static int bits = 77;

static noinline void use_null(void)
{
	WRITE_ONCE(*nowhere, 1);
}

static noinline void warn(void)
{
	WARN(1, "broken was asked to warn\n");
}

static noinline void hang(void)
{
	schedule_timeout_uninterruptible(3 * HZ);
}

/* With interrupts on and without a chance for others. */
static noinline void loop(void)
{
	unsigned long end = jiffies + 8 * HZ;

	preempt_disable();
	while (time_before(jiffies, end))
		cpu_relax();
	preempt_enable();
}

static noinline void take_both(struct mutex *one, struct mutex *other)
{
	mutex_lock(one);
	mutex_lock(other);
	mutex_unlock(other);
	mutex_unlock(one);
}

static noinline void use_freed(void)
{
	char *freed = kmalloc(64, GFP_KERNEL);

	kfree(freed);
	WRITE_ONCE(freed[3], 1);
}

static noinline void lose(void)
{
	lost = kmalloc(100, GFP_KERNEL);
	lost = NULL;
}

static noinline void shift(void)
{
	pr_info("broken: %d\n", 1 << READ_ONCE(bits));
}

static ssize_t broken_write(struct file *file, const char __user *user, size_t size, loff_t *offset)
{
	char what[16] = "";

	if (size >= sizeof(what) || copy_from_user(what, user, size))
		return -EINVAL;
	if (!strcmp(what, "null"))
		use_null();
	else if (!strcmp(what, "warn"))
		warn();
	else if (!strcmp(what, "hang"))
		hang();
	else if (!strcmp(what, "loop"))
		loop();
	else if (!strcmp(what, "freed"))
		use_freed();
	else if (!strcmp(what, "lose"))
		lose();
	else if (!strcmp(what, "shift"))
		shift();
	else if (!strcmp(what, "invert")) {
		take_both(&first, &second);
		take_both(&second, &first);
	} else
		return -EINVAL;
	return size;
}

static const struct proc_ops broken_ops = { .proc_write = broken_write };

static int __init broken_init(void)
{
	while (waits && !signal_pending(current))
		schedule_timeout_interruptible(HZ);
	if (waits)
		return -EINTR;
	return proc_create("broken", 0200, NULL, &broken_ops) ? 0 : -ENOMEM;
}

static void __exit broken_exit(void)
{
	remove_proc_entry("broken", NULL);
}

module_init(broken_init);
module_exit(broken_exit);
MODULE_DESCRIPTION("Makes mistakes on purpose");
MODULE_LICENSE("GPL");
