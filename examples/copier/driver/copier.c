// SPDX-License-Identifier: GPL-2.0
/* A driver for the copier: a number that is written to /dev/copier has so many bytes copied and compared. */

#include <linux/completion.h>
#include <linux/dma-mapping.h>
#include <linux/interrupt.h>
#include <linux/io-64-nonatomic-lo-hi.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pci.h>

#define STATUS 0x04
#define SRC 0x10
#define DST 0x18
#define COUNT 0x20
#define GO 0x28
#define DONE 1
#define MOST 32768
#define PATIENCE msecs_to_jiffies(5000)

struct copier {
	struct miscdevice misc;
	void __iomem *regs;
	struct completion done;
	struct mutex lock;
	u8 *buffer;
	dma_addr_t address;
};

static irqreturn_t copier_interrupt(int irq, void *data)
{
	struct copier *self = data;

	complete(&self->done);
	return IRQ_HANDLED;
}

static int copier_copy(struct copier *self, u32 bytes)
{
	memset(self->buffer, 0x5a, bytes);
	memset(self->buffer + MOST, 0, bytes);
	reinit_completion(&self->done);
	writel(DONE, self->regs + STATUS);
	writeq(self->address, self->regs + SRC);
	writeq(self->address + MOST, self->regs + DST);
	writel(bytes, self->regs + COUNT);
	writel(1, self->regs + GO);
	if (!wait_for_completion_timeout(&self->done, PATIENCE))
		return -ETIMEDOUT;
	return memcmp(self->buffer, self->buffer + MOST, bytes) ? -EIO : 0;
}

static ssize_t copier_write(struct file *file, const char __user *text, size_t length, loff_t *at)
{
	struct copier *self = container_of(file->private_data, struct copier, misc);
	u32 bytes;
	int err = kstrtou32_from_user(text, length, 0, &bytes);

	if (err)
		return err;
	if (!bytes || bytes > MOST)
		return -EINVAL;
	mutex_lock(&self->lock);
	err = copier_copy(self, bytes);
	mutex_unlock(&self->lock);
	return err ? err : length;
}

static const struct file_operations copier_files = {
	.owner = THIS_MODULE,
	.write = copier_write,
};

static int copier_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct device *dev = &pdev->dev;
	struct copier *self = devm_kzalloc(dev, sizeof(*self), GFP_KERNEL);
	int err;

	if (!self)
		return -ENOMEM;
	init_completion(&self->done);
	mutex_init(&self->lock);
	pci_set_drvdata(pdev, self);
	err = pcim_enable_device(pdev);
	if (err)
		return err;
	self->regs = pcim_iomap(pdev, 0, 0);
	if (!self->regs)
		return -ENOMEM;
	err = dma_set_mask_and_coherent(dev, DMA_BIT_MASK(64));
	if (err)
		return err;
	self->buffer = dmam_alloc_coherent(dev, 2 * MOST, &self->address, GFP_KERNEL);
	if (!self->buffer)
		return -ENOMEM;
	pci_set_master(pdev);
	err = pci_alloc_irq_vectors(pdev, 1, 1, PCI_IRQ_MSIX);
	if (err < 0)
		return err;
	err = request_irq(pci_irq_vector(pdev, 0), copier_interrupt, 0, "copier", self);
	if (err)
		goto free_vectors;
	self->misc.minor = MISC_DYNAMIC_MINOR;
	self->misc.name = "copier";
	self->misc.fops = &copier_files;
	err = misc_register(&self->misc);
	if (!err)
		return 0;
	free_irq(pci_irq_vector(pdev, 0), self);
free_vectors:
	pci_free_irq_vectors(pdev);
	return err;
}

static void copier_remove(struct pci_dev *pdev)
{
	struct copier *self = pci_get_drvdata(pdev);

	misc_deregister(&self->misc);
	pci_clear_master(pdev);
	free_irq(pci_irq_vector(pdev, 0), self);
	pci_free_irq_vectors(pdev);
}

static const struct pci_device_id copier_ids[] = {
	{ PCI_DEVICE(0x1234, 0x11f0) },
	{ }
};
MODULE_DEVICE_TABLE(pci, copier_ids);

static struct pci_driver copier_driver = {
	.name = "copier",
	.id_table = copier_ids,
	.probe = copier_probe,
	.remove = copier_remove,
};
module_pci_driver(copier_driver);

MODULE_DESCRIPTION("A driver for the copier of Bellwire's README");
MODULE_LICENSE("GPL");
