// SPDX-License-Identifier: GPL-2.0
/* Lab 3: a driver that has edu copy memory. /dev/edu is the buffer of 4 KiB that edu has. */

#include <linux/completion.h>
#include <linux/dma-mapping.h>
#include <linux/interrupt.h>
#include <linux/io-64-nonatomic-lo-hi.h>
#include <linux/kref.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/uaccess.h>

#include "edu_regs.h"

#define IRQ_DMA 0x100 /* a bit of EDU_IRQ_STATUS: a transfer has ended */
#define BUFFER_AT 0x40000 /* where edu's own buffer is: edu's name for it, no address in memory */
#define BUFFER_SIZE 4096
#define PATIENCE msecs_to_jiffies(2000)

struct edu {
	struct kref users; /* the driver, and every open file */
	struct device *dev;
	void __iomem *regs;
	struct mutex lock; /* edu makes one transfer at a time */
	bool gone; /* the device is not ours any more; under the lock */
	struct completion done;
	u8 *memory; /* as much memory as edu has, for the CPU: its address */
	dma_addr_t address; /* and for edu */
	struct miscdevice misc;
};

static irqreturn_t edu_interrupt(int irq, void *data)
{
	struct edu *self = data;
	u32 raised = readl(self->regs + EDU_IRQ_STATUS);

	if (!raised)
		return IRQ_NONE;
	writel(raised, self->regs + EDU_IRQ_ACKNOWLEDGE);
	if (raised & IRQ_DMA)
		complete(&self->done);
	return IRQ_HANDLED;
}

/*
 * Have edu copy `count` bytes: from its buffer, at `offset`, to the beginning of self->memory; or, if not `to_memory`,
 * the other way. Returns -ETIMEDOUT if no interrupt comes. The caller holds the lock, and has checked the numbers.
 */
static int edu_transfer(struct edu *self, u32 offset, u32 count, bool to_memory)
{
	/*
	 * TODO: write the two addresses into EDU_DMA_SOURCE and EDU_DMA_DESTINATION, and the count into
	 * EDU_DMA_COUNT. These registers have 64 bits: writeq(). Then write the command: EDU_DMA_COMMAND_START and
	 * EDU_DMA_COMMAND_INTERRUPT, and EDU_DMA_COMMAND_TO_GUEST if edu shall write to memory. Wait for self->done.
	 */
	return -EOPNOTSUPP;
}

/* The device is ours until the lock is given back. */
static int edu_lock(struct edu *self)
{
	if (mutex_lock_interruptible(&self->lock))
		return -ERESTARTSYS;
	if (!self->gone)
		return 0;
	mutex_unlock(&self->lock);
	return -ENODEV;
}

static ssize_t edu_read(struct file *file, char __user *text, size_t count, loff_t *place)
{
	struct edu *self = file->private_data;
	int err;

	if (*place >= BUFFER_SIZE)
		return 0;
	count = min_t(size_t, count, BUFFER_SIZE - *place);
	err = edu_lock(self);
	if (err)
		return err;
	err = edu_transfer(self, *place, count, true);
	if (!err && copy_to_user(text, self->memory, count))
		err = -EFAULT;
	mutex_unlock(&self->lock);
	if (err)
		return err;
	*place += count;
	return count;
}

static ssize_t edu_write(struct file *file, const char __user *text, size_t count, loff_t *place)
{
	struct edu *self = file->private_data;
	int err;

	if (*place >= BUFFER_SIZE)
		return -ENOSPC;
	count = min_t(size_t, count, BUFFER_SIZE - *place);
	err = edu_lock(self);
	if (err)
		return err;
	err = copy_from_user(self->memory, text, count) ? -EFAULT : edu_transfer(self, *place, count, false);
	mutex_unlock(&self->lock);
	if (err)
		return err;
	*place += count;
	return count;
}

static void edu_free(struct kref *users)
{
	kfree(container_of(users, struct edu, users));
}

/* No open() runs once misc_deregister() has returned. So the structure is there when one does. */
static int edu_open(struct inode *inode, struct file *file)
{
	struct edu *self = container_of(file->private_data, struct edu, misc);

	kref_get(&self->users);
	file->private_data = self;
	return 0;
}

static int edu_release(struct inode *inode, struct file *file)
{
	struct edu *self = file->private_data;

	kref_put(&self->users, edu_free);
	return 0;
}

static const struct file_operations edu_fops = {
	.owner = THIS_MODULE,
	.open = edu_open,
	.release = edu_release,
	.read = edu_read,
	.write = edu_write,
	.llseek = default_llseek,
};

static int edu_set_up(struct edu *self, struct pci_dev *pdev)
{
	struct device *dev = &pdev->dev;
	int err;

	err = pcim_enable_device(pdev);
	if (err)
		return dev_err_probe(dev, err, "cannot turn it on\n");
	self->regs = pcim_iomap(pdev, EDU_MMIO_BAR, EDU_MMIO_BAR_SIZE);
	if (!self->regs)
		return dev_err_probe(dev, -ENOMEM, "cannot map BAR %u\n", EDU_MMIO_BAR);

	/* Edu drives 28 address lines. The kernel must not give it memory above 256 MiB. */
	err = dma_set_mask_and_coherent(dev, DMA_BIT_MASK(28));
	if (err)
		return dev_err_probe(dev, err, "no memory that it can reach\n");
	self->memory = dmam_alloc_coherent(dev, BUFFER_SIZE, &self->address, GFP_KERNEL);
	if (!self->memory)
		return -ENOMEM;
	writel(readl(self->regs + EDU_IRQ_STATUS), self->regs + EDU_IRQ_ACKNOWLEDGE);
	pci_set_master(pdev); /* from now on it may touch memory */

	err = pci_alloc_irq_vectors(pdev, 1, 1, PCI_IRQ_MSI | PCI_IRQ_INTX);
	if (err < 0)
		return dev_err_probe(dev, err, "no interrupt\n");
	err = request_irq(pci_irq_vector(pdev, 0), edu_interrupt, IRQF_SHARED, "edu_dma", self);
	if (err)
		goto free_vectors;

	self->misc.minor = MISC_DYNAMIC_MINOR;
	self->misc.name = "edu";
	self->misc.fops = &edu_fops;
	self->misc.parent = dev;
	err = misc_register(&self->misc); /* the last: from now on there are users */
	if (err)
		goto free_interrupt;
	return 0;

free_interrupt:
	free_irq(pci_irq_vector(pdev, 0), self);
free_vectors:
	pci_free_irq_vectors(pdev);
	return err;
}

static int edu_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct edu *self = kzalloc(sizeof(*self), GFP_KERNEL); /* no devm_: a file may be open after remove() */
	int err;

	if (!self)
		return -ENOMEM;
	kref_init(&self->users);
	mutex_init(&self->lock);
	init_completion(&self->done);
	self->dev = &pdev->dev;
	pci_set_drvdata(pdev, self);
	err = edu_set_up(self, pdev);
	if (err)
		kref_put(&self->users, edu_free);
	return err;
}

static void edu_remove(struct pci_dev *pdev)
{
	struct edu *self = pci_get_drvdata(pdev);

	misc_deregister(&self->misc);
	mutex_lock(&self->lock);
	self->gone = true; /* files that are still open get -ENODEV */
	mutex_unlock(&self->lock);
	pci_clear_master(pdev); /* edu cannot touch memory that is about to be freed */
	free_irq(pci_irq_vector(pdev, 0), self);
	pci_free_irq_vectors(pdev);
	kref_put(&self->users, edu_free);
}

static const struct pci_device_id edu_ids[] = {
	{ PCI_DEVICE(EDU_VENDOR_ID, EDU_DEVICE_ID) },
	{ }
};
MODULE_DEVICE_TABLE(pci, edu_ids);

static struct pci_driver edu_driver = {
	.name = "edu_dma",
	.id_table = edu_ids,
	.probe = edu_probe,
	.remove = edu_remove,
};
module_pci_driver(edu_driver);

MODULE_DESCRIPTION("Lab 3: DMA");
MODULE_LICENSE("GPL");
