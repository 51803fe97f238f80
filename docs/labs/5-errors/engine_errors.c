// SPDX-License-Identifier: GPL-2.0
/* Lab 5: the driver of lab 4, for an engine that fails, hangs, and loses interrupts. */

#include <linux/dma-mapping.h>
#include <linux/interrupt.h>
#include <linux/io-64-nonatomic-lo-hi.h>
#include <linux/kref.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/spinlock.h>
#include <linux/uaccess.h>
#include <linux/wait.h>

#include "engine_regs.h"

#define ENTRIES 16 /* a power of two */
#define MOST (ENTRIES - 1) /* one stays free: a ring whose tail is its head is empty */
#define CHUNK 512 /* bytes that one descriptor copies */
#define BUFFER_SIZE 65536 /* many more chunks than there are entries */
#define PATIENCE msecs_to_jiffies(2000)

#define POSTED 0
#define COPIED 1

struct descriptor {
	__le64 source;
	__le64 target;
	__le32 length;
	__le32 state; /* POSTED; the engine makes it COPIED */
};

struct engine {
	struct kref users; /* the driver, and every open file */
	struct device *dev;
	void __iomem *regs;
	int irq;
	struct mutex lock; /* one writer or reader of the buffers at a time */
	bool gone; /* the device is not ours any more; under the lock */

	spinlock_t ring_lock; /* the rest of this paragraph */
	struct descriptor *ring;
	dma_addr_t ring_address;
	unsigned int head; /* the oldest descriptor that is not known to be copied */
	unsigned int tail; /* the entry to fill next */
	bool halted; /* the engine has said so */
	wait_queue_head_t progress; /* the head has moved, or the engine has halted */

	u8 *source;
	dma_addr_t source_address;
	u8 *target;
	dma_addr_t target_address;
	struct miscdevice misc;
};

/* How many descriptors are in the ring, from the head to the tail. */
static unsigned int ring_used(struct engine *self)
{
	return (self->tail - self->head) & (ENTRIES - 1);
}

/* Fill the entry at the tail, which is free, and move the tail. The engine does not look before it is rung. */
static void ring_post(struct engine *self, dma_addr_t source, dma_addr_t target, u32 length)
{
	struct descriptor *entry = &self->ring[self->tail];

	entry->source = cpu_to_le64(source);
	entry->target = cpu_to_le64(target);
	entry->length = cpu_to_le32(length);
	entry->state = cpu_to_le32(POSTED);
	self->tail = (self->tail + 1) % ENTRIES;
}

/* Move the head past all descriptors that the engine has copied. Returns how many these were. */
static unsigned int ring_reap(struct engine *self)
{
	unsigned int reaped = 0;

	while (self->head != self->tail && le32_to_cpu(READ_ONCE(self->ring[self->head].state)) == COPIED) {
		self->head = (self->head + 1) % ENTRIES;
		reaped++;
	}
	dma_rmb();
	return reaped;
}

/* Tell the engine the tail. The writel() makes what has been stored before it visible to the engine first. */
static void engine_ring(struct engine *self)
{
	writel(self->tail, self->regs + ENGINE_TAIL);
}

/* Have the engine begin with an empty ring. */
static void engine_start(struct engine *self)
{
	self->head = 0;
	self->tail = 0;
	self->halted = false;
	writeq(self->ring_address, self->regs + ENGINE_RING);
	writel(ENTRIES, self->regs + ENGINE_ENTRIES);
	writel(ENGINE_CONTROL_ENABLE, self->regs + ENGINE_CONTROL);
}

/* Have the engine forget the ring. Once it has answered the read, it touches memory no more. */
static void engine_stop(struct engine *self)
{
	writel(0, self->regs + ENGINE_CONTROL);
	readl(self->regs + ENGINE_CONTROL);
}

/* The handler runs in a thread, since there may be many descriptors to look at. */
static irqreturn_t engine_interrupt(int irq, void *data)
{
	struct engine *self = data;
	u32 cause = readl(self->regs + ENGINE_CAUSE);

	if (!cause || PCI_POSSIBLE_ERROR(cause)) /* all ones: it has been pulled out */
		return IRQ_NONE;
	/*
	 * Acknowledge before the look at the ring: what is copied later interrupts again. The write is posted, and may
	 * be under way for a while. The read waits until it has arrived.
	 */
	writel(cause, self->regs + ENGINE_CAUSE);
	readl(self->regs + ENGINE_CAUSE);
	spin_lock(&self->ring_lock);
	ring_reap(self);
	if (cause & ENGINE_CAUSE_ERROR)
		self->halted = true;
	spin_unlock(&self->ring_lock);
	wake_up(&self->progress);
	return IRQ_HANDLED;
}

static unsigned int engine_used(struct engine *self)
{
	unsigned int used;

	spin_lock(&self->ring_lock);
	used = ring_used(self);
	spin_unlock(&self->ring_lock);
	return used;
}

/*
 * Wait until at most `most` descriptors are in the ring. Returns -EIO at once if the engine halts, and -ETIMEDOUT if it
 * does nothing. A lost interrupt is no error: the descriptors say what has been done.
 */
static int engine_wait(struct engine *self, unsigned int most)
{
	/*
	 * TODO 1: this is what lab 4 does. Have it wake up when self->halted is set, too. When the time is over,
	 * look at the ring yourself (ring_reap(), under its lock) before you give up.
	 */
	return wait_event_timeout(self->progress, engine_used(self) <= most, PATIENCE) ? 0 : -ETIMEDOUT;
}

/* Have the engine start anew, with an empty ring, whatever it is doing. */
static void engine_recover(struct engine *self)
{
	/*
	 * TODO 2: stop the engine. Then no interrupt comes any more, but the handler may still be busy with the last
	 * one: synchronize_irq(). Only then start the engine.
	 */
}

/* Have the engine copy `count` bytes from source to target, in chunks. */
static int engine_post_all(struct engine *self, size_t count)
{
	size_t offset;

	for (offset = 0; offset < count; offset += CHUNK) {
		u32 length = min_t(size_t, CHUNK, count - offset);
		int err = 0;

		if (engine_used(self) == MOST) {
			engine_ring(self); /* once for all that has been posted, not once for each */
			err = engine_wait(self, MOST / 2);
		}
		if (err)
			return err;
		spin_lock(&self->ring_lock);
		ring_post(self, self->source_address + offset, self->target_address + offset, length);
		spin_unlock(&self->ring_lock);
	}
	engine_ring(self);
	return engine_wait(self, 0);
}

/* As engine_post_all(). After an error, the engine is ready for the next copy. */
static int engine_copy(struct engine *self, size_t count)
{
	int err = engine_post_all(self, count);

	if (err) {
		dev_err(self->dev, "error %d: the engine is at entry %u, its status is %#x, its error %u\n", err,
			readl(self->regs + ENGINE_HEAD), readl(self->regs + ENGINE_STATUS), readl(self->regs + ENGINE_ERROR));
		engine_recover(self);
	}
	return err;
}

/* The device is ours until the lock is given back. */
static int engine_lock(struct engine *self)
{
	if (mutex_lock_interruptible(&self->lock))
		return -ERESTARTSYS;
	if (!self->gone)
		return 0;
	mutex_unlock(&self->lock);
	return -ENODEV;
}

static ssize_t engine_read(struct file *file, char __user *text, size_t count, loff_t *place)
{
	struct engine *self = file->private_data;
	ssize_t done = engine_lock(self);

	if (done)
		return done;
	done = simple_read_from_buffer(text, count, place, self->target, BUFFER_SIZE);
	mutex_unlock(&self->lock);
	return done;
}

/* Every write begins at the beginning of the buffers. */
static ssize_t engine_write(struct file *file, const char __user *text, size_t count, loff_t *place)
{
	struct engine *self = file->private_data;
	int err = engine_lock(self);

	if (err)
		return err;
	count = min_t(size_t, count, BUFFER_SIZE);
	memset(self->target, 0, BUFFER_SIZE);
	err = copy_from_user(self->source, text, count) ? -EFAULT : engine_copy(self, count);
	mutex_unlock(&self->lock);
	return err ?: count;
}

static void engine_free(struct kref *users)
{
	kfree(container_of(users, struct engine, users));
}

static int engine_open(struct inode *inode, struct file *file)
{
	struct engine *self = container_of(file->private_data, struct engine, misc);

	kref_get(&self->users);
	file->private_data = self;
	return 0;
}

static int engine_release(struct inode *inode, struct file *file)
{
	struct engine *self = file->private_data;

	kref_put(&self->users, engine_free);
	return 0;
}

static const struct file_operations engine_fops = {
	.owner = THIS_MODULE,
	.open = engine_open,
	.release = engine_release,
	.read = engine_read,
	.write = engine_write,
	.llseek = default_llseek,
};

static const char *const faults[] = {
	[ENGINE_INJECT_NONE] = "none",
	[ENGINE_INJECT_ERROR] = "error",
	[ENGINE_INJECT_HANG] = "hang",
	[ENGINE_INJECT_SILENCE] = "silence",
};

/* For the tests: what goes wrong with the next descriptor. */
static ssize_t inject_store(struct device *dev, struct device_attribute *attr, const char *text, size_t count)
{
	struct engine *self = dev_get_drvdata(dev);
	int fault = sysfs_match_string(faults, text);

	if (fault < 0)
		return fault;
	writel(fault, self->regs + ENGINE_INJECT);
	return count;
}
static DEVICE_ATTR_WO(inject);

static struct attribute *engine_attrs[] = {
	&dev_attr_inject.attr,
	NULL,
};
ATTRIBUTE_GROUPS(engine);

static int engine_set_up(struct engine *self, struct pci_dev *pdev)
{
	struct device *dev = &pdev->dev;
	int err;

	err = pcim_enable_device(pdev);
	if (err)
		return dev_err_probe(dev, err, "cannot turn it on\n");
	self->regs = pcim_iomap(pdev, ENGINE_MMIO_BAR, ENGINE_MMIO_BAR_SIZE);
	if (!self->regs)
		return dev_err_probe(dev, -ENOMEM, "cannot map BAR %u\n", ENGINE_MMIO_BAR);
	err = dma_set_mask_and_coherent(dev, DMA_BIT_MASK(64));
	if (err)
		return dev_err_probe(dev, err, "no DMA\n");
	self->ring = dmam_alloc_coherent(dev, ENTRIES * sizeof(*self->ring), &self->ring_address, GFP_KERNEL);
	self->source = dmam_alloc_coherent(dev, BUFFER_SIZE, &self->source_address, GFP_KERNEL);
	self->target = dmam_alloc_coherent(dev, BUFFER_SIZE, &self->target_address, GFP_KERNEL);
	if (!self->ring || !self->source || !self->target)
		return -ENOMEM;
	engine_stop(self); /* whatever an earlier driver has left */
	pci_set_master(pdev);

	err = pci_alloc_irq_vectors(pdev, 1, 1, PCI_IRQ_MSIX);
	if (err < 0)
		return dev_err_probe(dev, err, "no interrupt\n");
	self->irq = pci_irq_vector(pdev, 0);
	err = request_threaded_irq(self->irq, NULL, engine_interrupt, IRQF_ONESHOT, "engine_errors", self);
	if (err)
		goto free_vectors;
	engine_start(self);

	self->misc.minor = MISC_DYNAMIC_MINOR;
	self->misc.name = "engine";
	self->misc.fops = &engine_fops;
	self->misc.parent = dev;
	err = misc_register(&self->misc);
	if (err)
		goto stop;
	return 0;

stop:
	engine_stop(self);
	free_irq(self->irq, self);
free_vectors:
	pci_free_irq_vectors(pdev);
	return err;
}

static int engine_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct engine *self = kzalloc(sizeof(*self), GFP_KERNEL);
	int err;

	if (!self)
		return -ENOMEM;
	kref_init(&self->users);
	mutex_init(&self->lock);
	spin_lock_init(&self->ring_lock);
	init_waitqueue_head(&self->progress);
	self->dev = &pdev->dev;
	pci_set_drvdata(pdev, self);
	err = engine_set_up(self, pdev);
	if (err)
		kref_put(&self->users, engine_free);
	return err;
}

static void engine_remove(struct pci_dev *pdev)
{
	struct engine *self = pci_get_drvdata(pdev);

	misc_deregister(&self->misc);
	mutex_lock(&self->lock);
	self->gone = true;
	mutex_unlock(&self->lock);
	engine_stop(self);
	pci_clear_master(pdev);
	free_irq(self->irq, self);
	pci_free_irq_vectors(pdev);
	kref_put(&self->users, engine_free);
}

static const struct pci_device_id engine_ids[] = {
	{ PCI_DEVICE(ENGINE_VENDOR_ID, ENGINE_DEVICE_ID) },
	{ }
};
MODULE_DEVICE_TABLE(pci, engine_ids);

static struct pci_driver engine_driver = {
	.name = "engine_errors",
	.id_table = engine_ids,
	.probe = engine_probe,
	.remove = engine_remove,
	.dev_groups = engine_groups,
};
module_pci_driver(engine_driver);

MODULE_DESCRIPTION("Lab 5: errors");
MODULE_LICENSE("GPL");
